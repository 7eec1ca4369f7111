package ecrapi

import (
	"cmp"
	"context"
	"log/slog"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// Catalog notes what ECR tells about repositories and images: when images were pushed
// and pulled, their tags and sizes, and the settings of each repository. It wraps the
// Store that has the images:
//
//	catalog := &ecrapi.Catalog{Template: api.Template, Excluded: api.Excluded}
//	proxy := &pullthrough.Proxy{
//		Store:   catalog.Around(memstore.New()),
//		Rules:   api,
//		OnEvent: catalog.RecordPull,
//	}
//
// A Proxy answers a pull before its Store has the image. A client that pulls and then
// asks for a list of images shall find what it has pulled. So the list waits for the
// Store, for up to one second after the answer. It waits only if OnEvent calls
// [Catalog.RecordPull]. Otherwise it shows what the Store has at that moment.
//
// A Catalog is a struct to fill in: the zero value keeps its notes in memory. Fields
// must not change after first use. It is safe for concurrent use and must not be
// copied after first use.
type Catalog struct {
	// Template returns the creation template for a repository that a pull creates.
	// [API.Template] fits. If it returns an error, the pull is refused, see
	// [pullthrough.RepoCreator]. nil: there are no templates.
	Template func(ctx context.Context, repo pullthrough.Repo) (t Template, ok bool, err error)
	// Excluded reports whether a principal is excluded: its pulls do not change the time
	// of an image's last recorded pull. [API.Excluded] fits. nil: no principal is.
	Excluded func(ctx context.Context, account, region, principal string) (bool, error)
	// File is where the notes are kept, as JSON. It is written as a whole when a
	// repository, an image or a tag has changed. After a write there is a pause of 50 ms,
	// or of ten times as long as the write took if that is longer. What changes in the
	// pause is written at its end. The times of pulls are written with the next such
	// change, or by [Catalog.Save]. [Catalog.Load] reads the file. "": the notes are not
	// kept.
	File string
	// Logger is told when something could not be noted or saved. nil: nothing is logged.
	Logger *slog.Logger
	// Now is the clock for the times of repositories, images and pulls. nil: time.Now.
	Now func() time.Time

	mu      sync.RWMutex
	checker ImageChecker // the Store; nil: the Store is no ImageChecker
	repos   map[pullthrough.Repo]*repository
	early   map[imageKey]time.Time // pulls that came before the Store had the image

	arrivals arrivals
	saving
}

// CatalogRepository is what a [Catalog] knows about a repository beside its images: when
// it was created, and its settings. At first they are those of the request that created it,
// or of the creation template that applied then.
type CatalogRepository struct {
	CreatedAt                          time.Time               `json:"createdAt,omitzero"`
	EncryptionConfiguration            EncryptionConfiguration `json:"encryptionConfiguration"`
	ResourceTags                       []Tag                   `json:"resourceTags,omitempty"`
	ImageTagMutability                 string                  `json:"imageTagMutability,omitempty"`
	ImageTagMutabilityExclusionFilters []ExclusionFilter       `json:"imageTagMutabilityExclusionFilters,omitempty"`
	RepositoryPolicy                   string                  `json:"repositoryPolicy,omitempty"`
	LifecyclePolicy                    string                  `json:"lifecyclePolicy,omitempty"`
	// LifecycleEvaluatedAt is when the host last ran the lifecycle policy. Zero: never.
	LifecycleEvaluatedAt       time.Time                  `json:"lifecycleEvaluatedAt,omitzero"`
	ImageScanningConfiguration ImageScanningConfiguration `json:"imageScanningConfiguration,omitzero"`
}

// Repository returns what is known about a repository. Its slices must not be changed.
// ok is false if there is no such repository. It does not wait for the Store.
func (c *Catalog) Repository(repo pullthrough.Repo) (r CatalogRepository, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if have := c.repos[repo]; have != nil {
		return have.CatalogRepository, true
	}
	return CatalogRepository{}, false
}

// repository is a repository with its images. Catalog.mu guards it.
type repository struct {
	CatalogRepository
	images map[digest.Digest]image
	tags   map[string]digest.Digest
	claims map[string]claim // tags that must not move and that are being put
	change uint64           // counts the changes
}

// claim is the new digest of a tag, and how many puts with this digest run.
type claim struct {
	digest digest.Digest
	puts   int
}

// imageKey names an image. It is comparable.
type imageKey struct {
	repo   pullthrough.Repo
	digest digest.Digest
}

// newSettings returns the settings of a repository that is created now by the template.
// The zero Template is none.
func (c *Catalog) newSettings(t Template) CatalogRepository {
	r := CatalogRepository{
		CreatedAt:                          c.now(),
		EncryptionConfiguration:            EncryptionConfiguration{EncryptionType: new(aes256)},
		ResourceTags:                       t.ResourceTags,
		ImageTagMutability:                 cmp.Or(t.ImageTagMutability, mutable),
		ImageTagMutabilityExclusionFilters: t.ImageTagMutabilityExclusionFilters,
		RepositoryPolicy:                   t.RepositoryPolicy,
		LifecyclePolicy:                    t.LifecyclePolicy,
	}
	if t.EncryptionConfiguration != nil {
		r.EncryptionConfiguration = *t.EncryptionConfiguration
	}
	return r
}

// mustNotMove reports whether the tag must not move once the repository has it.
func (r CatalogRepository) mustNotMove(tag string) bool {
	excluded := slices.ContainsFunc(r.ImageTagMutabilityExclusionFilters, func(f ExclusionFilter) bool {
		match, err := path.Match(value(f.Filter), tag) // neither has a slash: * is any text
		return err == nil && match
	})
	switch r.ImageTagMutability {
	case immutable, immutableWithExclusion:
		return !excluded
	case mutableWithExclusion:
		return excluded
	}
	return false
}

const (
	immutableWithExclusion = "IMMUTABLE_WITH_EXCLUSION"
	mutableWithExclusion   = "MUTABLE_WITH_EXCLUSION"
)

// has reports whether the repository is known.
func (c *Catalog) has(repo pullthrough.Repo) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.repos[repo] != nil
}

// add notes the repository unless it is known. It reports whether it was not.
func (c *Catalog) add(repo pullthrough.Repo, settings CatalogRepository) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.repos[repo] != nil {
		return false
	}
	c.addLocked(repo, settings)
	return true
}

func (c *Catalog) addLocked(repo pullthrough.Repo, settings CatalogRepository) *repository {
	if c.repos == nil {
		c.repos = map[pullthrough.Repo]*repository{}
	}
	r := &repository{
		CatalogRepository: settings, change: 1,
		images: map[digest.Digest]image{}, tags: map[string]digest.Digest{}, claims: map[string]claim{},
	}
	c.repos[repo] = r
	return r
}

// names returns the names of the repositories of an account in a Region, in no order.
func (c *Catalog) names(account, region string) (names []string) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for repo := range c.repos {
		if repo.Account == account && repo.Region == region {
			names = append(names, repo.Name)
		}
	}
	return names
}

func (c *Catalog) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Catalog) warn(ctx context.Context, what string, err error) {
	if c.Logger != nil {
		c.Logger.WarnContext(ctx, what, "err", err)
	}
}
