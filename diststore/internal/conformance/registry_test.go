package conformance_test

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/stretchr/testify/require"
)

// startRegistry is distribution's registry over a bucket, as its configuration
// file would have it. It returns its address.
func startRegistry(t testing.TB, parameters map[string]any) string {
	t.Helper()
	config := &configuration.Configuration{
		Log: configuration.Log{AccessLog: configuration.AccessLog{Disabled: true}, Level: "error"},
		Storage: configuration.Storage{
			"s3":       parameters,
			"redirect": configuration.Parameters{"disable": true},
			"maintenance": configuration.Parameters{
				"uploadpurging": map[any]any{"enabled": false},
				"readonly":      map[any]any{"enabled": true},
			},
		},
	}
	config.HTTP.Secret = "only-for-tests"
	app := handlers.NewApp(context.Background(), config)
	srv := httptest.NewServer(app)
	t.Cleanup(func() {
		srv.Close()
		_ = app.Shutdown()
	})
	return srv.URL
}

// collectGarbage is `registry garbage-collect --delete-untagged`.
func collectGarbage(t testing.TB, driver storagedriver.StorageDriver) {
	t.Helper()
	registry, err := storage.NewRegistry(t.Context(), driver)
	require.NoError(t, err)
	require.NoError(t, storage.MarkAndSweep(t.Context(), driver, registry, storage.GCOpts{Quiet: true}))
}
