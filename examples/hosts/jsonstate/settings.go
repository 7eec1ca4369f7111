package jsonstate

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// settings is an ecrapi.State in a JSON file: rules, templates, exclusions and the settings of each registry.
type settings struct {
	file string
	mu   sync.RWMutex
	all  map[string]ecrapi.Settings // by account and Region; replaced, and never changed
}

func openSettings(file string) (*settings, error) {
	s := &settings{file: file}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &s.all)
	}
	return s, err
}

// Load implements [ecrapi.State].
func (s *settings) Load(_ context.Context, account, region string) (ecrapi.Settings, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[account+"/"+region], nil
}

// Update implements [ecrapi.State]. The file is written before the change is seen, and as a whole.
func (s *settings) Update(_ context.Context, account, region string, change func(*ecrapi.Settings) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[account+"/"+region]
	if err := change(&one); err != nil {
		return err
	}
	all := map[string]ecrapi.Settings{}
	maps.Copy(all, s.all)
	all[account+"/"+region] = one
	content, err := json.MarshalIndent(all, "", "\t")
	if err == nil {
		err = os.WriteFile(s.file+".new", content, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+".new", s.file)
	}
	if err != nil {
		return err
	}
	s.all = all
	return nil
}
