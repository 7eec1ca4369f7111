package fakeecr_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What the API has made is there again after a restart, and what is known of images.
func TestSettingsOutliveTheServer(t *testing.T) {
	up, img, dir := newUpstream(t), newImage(), t.TempDir()
	up.Push("library/alpine", "3.22", img)
	config := fakeecr.Config{Data: dir, Secrets: map[string]pullthrough.Credential{hubName: me}, Endpoints: endpoints(t, "registry-1.docker.io", up.URL)}
	i := start(t, config)
	i.ok(t, "CreatePullThroughCacheRule", hubRule)
	i.ok(t, "CreateRepositoryCreationTemplate", `{"prefix":"ROOT","appliedFor":["PULL_THROUGH_CACHE"],"imageTagMutability":"IMMUTABLE"}`)
	i.ok(t, "RegisterPullTimeUpdateExclusion", `{"principalArn":"arn:aws:iam::123456789012:role/scanner"}`)
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	all := map[string]string{
		"DescribePullThroughCacheRules":       `{}`,
		"DescribeRepositoryCreationTemplates": `{}`,
		"ListPullTimeUpdateExclusions":        `{}`,
		"DescribeRepositories":                `{}`,
		"DescribeImages":                      `{"repositoryName":"docker-hub/library/alpine"}`,
	}
	before := map[string]object{}
	for op, body := range all {
		_, before[op] = i.call(t, "ecr.test", op, body) // the port will be another
	}
	i.stop()
	up.Reset()

	i = start(t, config)
	for op, body := range all {
		status, after := i.call(t, "ecr.test", op, body)
		assert.Equal(t, 200, status)
		assert.Equal(t, before[op], after, op)
	}
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	assert.Empty(t, up.Log())
	kept, err := os.ReadFile(filepath.Join(dir, "pullthrough", "settings.json"))
	require.NoError(t, err)
	assert.Contains(t, string(kept), hubARN)
	assert.NotContains(t, string(kept), secret)
}

// The rules of the Config stand before what is kept, which is not lost.
func TestTheConfigWins(t *testing.T) {
	up, img, dir := pullthroughtest.New(t, pullthroughtest.Config{}), newImage(), t.TempDir()
	up.Push("app", "v1", img)
	urls := func(i *instance) []any {
		return i.list(t, "DescribePullThroughCacheRules", "{}", "pullThroughCacheRules", "upstreamRegistryUrl")
	}
	with := func(rules ...pullthrough.Rule) *instance { return start(t, fakeecr.Config{Data: dir, Rules: rules}) }
	create := func(i *instance, prefix, url string) {
		i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"`+prefix+`","upstreamRegistryUrl":"`+url+`"}`)
	}
	i := with()
	create(i, "pp", "quay.io")
	i.stop()

	i = with(ruleTo("pp/", up.URL))
	assert.Equal(t, []any{up.URL}, urls(i))
	i.pull(t, "pp/app", "v1", img)
	create(i, "qq", "public.ecr.aws") // writes the file
	i.stop()

	i = with()
	assert.Equal(t, []any{"quay.io", "public.ecr.aws"}, urls(i))
	i.stop()

	// A client that deletes a rule does not find another behind it.
	i = with(ruleTo("pp", up.URL))
	i.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp"}`)
	assert.Equal(t, []any{"public.ecr.aws"}, urls(i))
	create(i, "pp", "registry.k8s.io")
	assert.Equal(t, []any{"registry.k8s.io", "public.ecr.aws"}, urls(i))
	i.stop()

	i = with(ruleTo("pp", up.URL))
	assert.Equal(t, []any{up.URL, "public.ecr.aws"}, urls(i))
	i.stop()
	i = with()
	assert.Equal(t, []any{"registry.k8s.io", "public.ecr.aws"}, urls(i))
	i.stop()

	// Another account has rules of its own.
	i = start(t, fakeecr.Config{Data: dir, Account: "210987654321"})
	assert.Empty(t, i.rules(t))
	create(i, "pp", "quay.io")
	i.stop()
	assert.Equal(t, []any{"registry.k8s.io", "public.ecr.aws"}, urls(with()))
}

// A version that is not known was written by a newer program, and is left alone.
func TestSettingsOfAnotherVersion(t *testing.T) {
	for _, file := range []string{"settings.json", "catalog.json"} {
		const content = `{"version":99}`
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "pullthrough"), 0o700))
		name := filepath.Join(dir, "pullthrough", file)
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
		_, err := fakeecr.New(fakeecr.Config{Data: dir})
		assert.ErrorContains(t, err, name)
		kept, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.Equal(t, content, string(kept))
		require.NoError(t, os.Remove(name))
		start(t, fakeecr.Config{Data: dir}).stop() // New has given the directory back
	}
}

// A file that was cut by a crash, or is of no use for another reason, keeps nobody from
// the images. It is set aside, and the log tells where.
func TestDamagedSettingsAreSetAside(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	for _, file := range []string{"settings.json", "catalog.json"} {
		for name, damage := range map[string]func([]byte) []byte{
			"empty": func([]byte) []byte { return nil },
			"cut":   func(b []byte) []byte { return b[:len(b)/2] },
			"zeros": func(b []byte) []byte { return make([]byte, len(b)) },
			"list":  func([]byte) []byte { return []byte("[]") },
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				config := fakeecr.Config{Data: t.TempDir(), Rules: []pullthrough.Rule{ruleTo("pp", up.URL)}}
				i := start(t, config)
				i.pull(t, "pp/app", "v1", img)
				i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"qq","upstreamRegistryUrl":"quay.io"}`)
				i.stop()
				path := filepath.Join(config.Data, "pullthrough", file)
				whole, err := os.ReadFile(path)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path, damage(whole), 0o600))
				up.Reset()

				i = start(t, config)
				assert.Contains(t, i.log.String(), path+".damaged")
				i.pull(t, "pp/app", "v1", img)
				assert.Empty(t, up.Log(), "the images are there")
				i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"rr","upstreamRegistryUrl":"quay.io"}`)
				i.stop()
				aside, err := os.ReadFile(path + ".damaged")
				require.NoError(t, err)
				assert.Equal(t, string(damage(whole)), string(aside))

				i = start(t, config)
				assert.Contains(t, i.rules(t), "rr")
				i.stop()
				assert.NotContains(t, i.log.String(), "damaged")
			})
		}
	}
}

// A change that cannot be kept is refused: it would be gone after the next start.
func TestSettingsThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	i := start(t, fakeecr.Config{Data: dir})
	require.NoError(t, os.Mkdir(filepath.Join(dir, "pullthrough", "settings.json"), 0o700))
	status, out := i.call(t, "", "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp","upstreamRegistryUrl":"quay.io"}`)
	assert.Equal(t, 500, status)
	assert.Equal(t, "ServerException", out["__type"])
	assert.Empty(t, i.rules(t))
	i.stop()
	assert.Contains(t, i.log.String(), "settings.json")
	assert.NoFileExists(t, filepath.Join(dir, "pullthrough", "settings.json.new"))
}
