package ecrapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

func TestAChangeThatFailsChangesNothing(t *testing.T) {
	state := &ecrapi.MemState{}
	want := errors.New("no")
	err := state.Update(t.Context(), account, region, func(s *ecrapi.Settings) error {
		s.Rules = append(s.Rules, pullthrough.Rule{Prefix: "hub"})
		return want
	})
	assert.Equal(t, want, err)
	settings, err := state.Load(t.Context(), account, region)
	require.NoError(t, err)
	assert.Empty(t, settings)
}

func TestChangesFollowEachOther(t *testing.T) {
	state := &ecrapi.MemState{}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			err := state.Update(t.Context(), account, region, func(s *ecrapi.Settings) error {
				s.Exclusions = append(s.Exclusions[:len(s.Exclusions):len(s.Exclusions)], ecrapi.Exclusion{PrincipalArn: fmt.Sprint(i)})
				return nil
			})
			assert.NoError(t, err)
			_, err = state.Load(t.Context(), account, region)
			assert.NoError(t, err)
		})
	}
	all.Wait()
	settings, err := state.Load(t.Context(), account, region)
	require.NoError(t, err)
	assert.Len(t, settings.Exclusions, 50)
}

func TestRegistriesInMemoryAreLimited(t *testing.T) {
	c := start(t, &ecrapi.API{})
	nothing := func(*ecrapi.Settings) error { return nil }
	state := &ecrapi.MemState{}
	for i := range 10_000 {
		require.NoError(t, state.Update(t.Context(), fmt.Sprint(i), region, nothing))
	}
	assert.Error(t, state.Update(t.Context(), "one more", region, nothing))
	assert.NoError(t, state.Update(t.Context(), "77", region, nothing))
	c.api.State = state
	resp, body := c.send(t, target+"RegisterPullTimeUpdateExclusion", object("principalArn", role))
	assertException(t, resp, body, "ServerException")
}

func TestSettingsAreKeptAsJSON(t *testing.T) {
	state := &ecrapi.MemState{}
	c := start(t, &ecrapi.API{State: state})
	c.create(t, "hub")
	for _, request := range [][2]string{
		{"CreateRepositoryCreationTemplate", templateRequest},
		{"RegisterPullTimeUpdateExclusion", object("principalArn", role)},
	} {
		resp, body := c.send(t, target+request[0], request[1])
		require.Equal(t, 200, resp.StatusCode, body)
	}
	settings, err := state.Load(t.Context(), account, region)
	require.NoError(t, err)
	content, err := json.Marshal(settings)
	require.NoError(t, err)
	var again ecrapi.Settings
	require.NoError(t, json.Unmarshal(content, &again))
	assert.Equal(t, settings, again)
}

// slack gives settings whose slices have room for more, and shows what is in it.
type slack struct{ settings ecrapi.Settings }

func (s *slack) Load(context.Context, string, string) (ecrapi.Settings, error) {
	return s.settings, nil
}

func (s *slack) Update(_ context.Context, _, _ string, change func(*ecrapi.Settings) error) error {
	settings := s.settings
	return change(&settings)
}

// Two changes of the same settings, of which a State drops one, must not meet in the
// room behind a slice.
func TestChangesDoNotWriteBehindASlice(t *testing.T) {
	s := &slack{ecrapi.Settings{Rules: make([]pullthrough.Rule, 0, 4), Templates: make([]ecrapi.Template, 0, 4), Exclusions: make([]ecrapi.Exclusion, 0, 4)}}
	c := start(t, &ecrapi.API{State: s})
	for _, l := range lists {
		l.add(t, c, l.name(0))
	}
	assert.Zero(t, s.settings.Rules[:1][0])
	assert.Zero(t, s.settings.Templates[:1][0])
	assert.Zero(t, s.settings.Exclusions[:1][0])
}
