package fakeecr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// settings is an [ecrapi.State]. It has what the API has created, which a file keeps,
// and the rules of the Config, which the file does not. A rule of the Config hides a
// rule with the same prefix in the file. The API may change and delete both kinds; the
// next Server has those of its Config again.
//
// The file belongs to one process: two would write over each other's changes.
type settings struct {
	file string // "": nothing is kept
	own  string // the registry that the rules of the Config belong to

	changing sync.Mutex // one Update at a time, while it writes the file

	mu    sync.RWMutex
	kept  map[string]ecrapi.Settings // the content of the file, by registryKey
	given []pullthrough.Rule         // of the Config
}

// settingsFile is the content of the file.
type settingsFile struct {
	Version    int                        `json:"version"`
	Registries map[string]ecrapi.Settings `json:"registries"` // by registryKey
}

const settingsVersion = 1

func registryKey(account, region string) string { return account + "/" + region }

// openSettings reads the file. A file that does not exist is empty. One that is damaged
// is set aside: the images are worth more than the settings, and need none.
func openSettings(file, own string, given []pullthrough.Rule, log *slog.Logger) (*settings, error) {
	s := &settings{file: file, own: own, given: given}
	if file == "" {
		return s, nil
	}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	var from settingsFile
	if err := json.Unmarshal(content, &from); err != nil {
		setAside(file, err, log)
		return s, nil
	}
	if from.Version != settingsVersion {
		return nil, fmt.Errorf("%s: version %d is not known", file, from.Version)
	}
	s.kept = from.Registries
	return s, nil
}

// setAside renames a damaged file. Where that fails it is no use all the same.
func setAside(file string, err error, log *slog.Logger) {
	aside := file + ".damaged"
	log.Warn("a damaged file is set aside, and what it kept begins anew", "file", file, "to", aside, "err", errors.Join(err, os.Rename(file, aside)))
}

// give replaces the rules of the Config.
func (s *settings) give(rules []pullthrough.Rule) {
	s.changing.Lock() // an Update that runs has read the rules before
	defer s.changing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given = rules
}

// Load implements [ecrapi.State].
func (s *settings) Load(_ context.Context, account, region string) (ecrapi.Settings, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	key := registryKey(account, region)
	all := s.kept[key]
	if key == s.own {
		all.Rules = slices.Concat(s.given, subtract(all.Rules, s.given))
	}
	return all, nil
}

// Update implements [ecrapi.State]. Nothing has changed if the file cannot be written.
func (s *settings) Update(ctx context.Context, account, region string, change func(*ecrapi.Settings) error) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	all, err := s.Load(ctx, account, region)
	if err == nil {
		err = change(&all)
	}
	if err != nil {
		return err
	}
	key := registryKey(account, region)
	given := s.given
	if key == s.own {
		// A rule of the file that was hidden stays hidden, unless change has deleted the
		// rule of the Config that hides it.
		given = intersect(all.Rules, s.given)
		hidden := intersect(s.kept[key].Rules, given)
		all.Rules = slices.Concat(subtract(all.Rules, s.given), hidden)
	}
	kept := maps.Clone(s.kept)
	if kept == nil {
		kept = map[string]ecrapi.Settings{}
	}
	kept[key] = all
	if s.file != "" {
		if err := (settingsFile{settingsVersion, kept}).write(s.file); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept, s.given = kept, given
	return nil
}

// write replaces the file as a whole: a reader gets the old one or the new one.
func (f settingsFile) write(name string) error {
	content, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	temp := name + ".new"
	err = writeSynced(temp, content)
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp) // a file that stays does no harm
	}
	return err
}

// writeSynced writes a file whose content is on the disk when it gets its name.
func writeSynced(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
