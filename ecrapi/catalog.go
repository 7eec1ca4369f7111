package ecrapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// Catalog knows of repositories and images what no Store keeps: when images were pushed
// and pulled, and the settings of each repository, such as policies and AWS tags. It
// wraps the Store that has the images:
//
//	catalog := &ecrapi.Catalog{Template: api.Template, Excluded: api.Excluded}
//	proxy := &pullthrough.Proxy{
//		Store:   catalog.Around(memstore.New()),
//		Rules:   api,
//		OnEvent: catalog.RecordPull,
//	}
//
// Which repositories, tags and images there are is the Store's word, whoever has put
// them there: the Catalog lists them by [pullthrough.RepoLister],
// [pullthrough.TagLister] and [pullthrough.ManifestLister]. What it meets for the first
// time begins with the settings of a repository that no template applies to, and counts
// as pushed when the Store has last checked it, or now. The one thing that the Catalog
// alone knows to exist is an empty repository, which was created here and not deleted.
// Of a Store that lacks one of the three interfaces the Catalog remembers what has come
// through [Catalog.Around], and forgets what it no longer finds there.
//
// A host changes the settings by [Catalog.CreateRepository] and
// [Catalog.UpdateRepository]. It deletes by [pullthrough.Proxy.DeleteImage] and
// [pullthrough.Proxy.DeleteRepo], which come to the Catalog by way of its Store. So the
// operations of an [API], /v2/ and the host's own handlers show the same.
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
	// File is where the notes are kept, as JSON, with what was read of manifests, so that
	// a list need not read them again. It is written as a whole when a
	// repository or an image has changed. After a write there is a pause of 50 ms,
	// or of ten times as long as the write took if that is longer. What changes in the
	// pause is written at its end. The times of pulls are written with the next such
	// change, or by [Catalog.Save]. [Catalog.Load] reads the file. "": the notes are not
	// kept.
	File string
	// Logger is told when something could not be noted or saved. nil: slog.Default.
	Logger *slog.Logger
	// Now is the clock for the times of repositories, images and pulls. nil: time.Now.
	Now func() time.Time

	mu    sync.RWMutex
	store *catalogStore // nil: Around was not called
	repos map[pullthrough.Repo]*repository
	early map[imageKey]time.Time // pulls that came before the Store had the image

	saving
}

// CatalogRepository is what a [Catalog] knows about a repository beside its images: when
// it was created, and its settings. At first those are of the request that created it, or
// of the creation template that applied. It is a value: its slices, and what they point to,
// are never changed in place.
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

// Repository returns the settings of a repository. If it does not exist, the error Is
// [io/fs.ErrNotExist]; other errors are the Store's. Repository does not wait for what
// was just pulled, see [pullthrough.Proxy.Idle].
func (c *Catalog) Repository(ctx context.Context, repo pullthrough.Repo) (CatalogRepository, error) {
	if err := c.find(ctx, repo); err != nil {
		return CatalogRepository{}, err
	}
	return c.settings(ctx, repo), nil
}

// Repositories returns the names of the repositories of an account in a Region, in
// order: those that the Store lists, and the empty ones that were created here.
func (c *Catalog) Repositories(ctx context.Context, account, region string) (names []string, err error) {
	s := c.around()
	if s.repos != nil {
		if names, err = s.repos.Repos(ctx, account, region); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	c.mu.RLock()
	for repo, r := range c.repos {
		if repo.Account == account && repo.Region == region && (s.repos == nil || !r.adopted) {
			names = append(names, repo.Name)
		}
	}
	c.mu.RUnlock()
	slices.Sort(names)
	return slices.Compact(names), nil
}

// CreateRepository creates an empty repository with the settings. If CreatedAt is zero,
// it is now; other members that are zero are those of a repository without a template.
// No template is applied. If the repository exists already, the error Is
// [io/fs.ErrExist]. It creates none if 100,000 are known.
func (c *Catalog) CreateRepository(ctx context.Context, repo pullthrough.Repo, settings CatalogRepository) error {
	err := c.find(ctx, repo)
	if err == nil {
		return errRepositoryExists
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.count() >= maxRepositories {
		return errManyRepositories
	}
	if !c.add(repo, c.complete(settings)) {
		return errRepositoryExists
	}
	c.writeChange(ctx)
	return nil
}

// maxRepositories is Amazon ECR's quota for one Region. Here it counts for all registries
// together, since callers may be allowed to name any account. Pulls may go beyond it.
const maxRepositories = 100_000

// count is the number of all repositories that are known.
func (c *Catalog) count() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.repos)
}

// UpdateRepository changes the settings of a repository: policies, AWS tags, the
// mutability of tags. change gets the settings as they are, and changes slices only by
// replacing them. No other change comes between. It does no I/O and must not use the
// Catalog. If it returns an error, nothing is changed, and UpdateRepository returns that
// error as it is. If the repository does not exist, the error Is [io/fs.ErrNotExist].
func (c *Catalog) UpdateRepository(ctx context.Context, repo pullthrough.Repo, change func(*CatalogRepository) error) error {
	if err := c.find(ctx, repo); err != nil {
		return err
	}
	if err := c.change(repo, change); err != nil {
		return err
	}
	c.writeChange(ctx)
	return nil
}

func (c *Catalog) change(repo pullthrough.Repo, change func(*CatalogRepository) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repo]
	if r == nil {
		return errNoRepository // it was deleted a moment ago
	}
	settings := r.CatalogRepository
	if err := change(&settings); err != nil {
		return err
	}
	r.CatalogRepository = settings
	return nil
}

var (
	errNoRepository     = fmt.Errorf("the repository does not exist: %w", fs.ErrNotExist)
	errRepositoryExists = fmt.Errorf("the repository exists already: %w", fs.ErrExist)
	errManyRepositories = errors.New("as many repositories as there may be were created")
)

// find returns errNoRepository if the repository does not exist. One that exists has
// notes afterwards.
func (c *Catalog) find(ctx context.Context, repo pullthrough.Repo) error {
	exists, err := c.around().RepoExists(ctx, repo)
	if err != nil {
		return err
	}
	if !exists {
		c.disown(repo)
		return errNoRepository
	}
	c.settings(ctx, repo)
	return nil
}

// settings returns the settings of a repository that exists.
func (c *Catalog) settings(ctx context.Context, repo pullthrough.Repo) CatalogRepository {
	c.mu.Lock()
	r, known := c.repos[repo]
	if !known {
		r = c.adoptLocked(repo)
	}
	settings := r.CatalogRepository
	c.mu.Unlock()
	if !known {
		c.writeChange(ctx)
	}
	return settings
}

// disown forgets a repository that the Store has lost, unless it was created here.
func (c *Catalog) disown(repo pullthrough.Repo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.repos[repo]; r != nil && r.adopted {
		delete(c.repos, repo)
	}
}

// remove forgets a repository.
func (c *Catalog) remove(ctx context.Context, repo pullthrough.Repo) {
	c.mu.Lock()
	_, known := c.repos[repo]
	delete(c.repos, repo)
	c.mu.Unlock()
	if known {
		c.writeChange(ctx)
	}
}

// repository is what is known about a repository and its images. Catalog.mu guards it.
type repository struct {
	CatalogRepository
	adopted bool // it was not created here, and exists as long as the Store has it
	images  map[digest.Digest]image
	tags    map[string]digest.Digest // what has come by; of no use if the Store lists its tags
	claims  map[string]claim         // tags that must not move and that are being put
	change  uint64                   // counts the changes of images and tags
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

// fromTemplate returns the settings of a repository that is created by the template.
func fromTemplate(t Template) CatalogRepository {
	r := CatalogRepository{
		ResourceTags:                       t.ResourceTags,
		ImageTagMutability:                 t.ImageTagMutability,
		ImageTagMutabilityExclusionFilters: t.ImageTagMutabilityExclusionFilters,
		RepositoryPolicy:                   t.RepositoryPolicy,
		LifecyclePolicy:                    t.LifecyclePolicy,
	}
	if t.EncryptionConfiguration != nil {
		r.EncryptionConfiguration = *t.EncryptionConfiguration
	}
	return r
}

// complete fills in what the settings of a repository that is created now leave out.
func (c *Catalog) complete(r CatalogRepository) CatalogRepository {
	if r.CreatedAt.IsZero() {
		r.CreatedAt = c.now()
	}
	if r.EncryptionConfiguration.EncryptionType == nil {
		r.EncryptionConfiguration.EncryptionType = new(aes256)
	}
	r.ImageTagMutability = cmp.Or(r.ImageTagMutability, mutable)
	return r
}

// mustNotMove reports whether the tag must not move once the repository has it.
func (r CatalogRepository) mustNotMove(tag string) bool {
	excluded := slices.ContainsFunc(r.ImageTagMutabilityExclusionFilters, func(f ExclusionFilter) bool {
		return matchesWildcard(value(f.Filter), tag)
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

// isCreated reports whether the repository was created here.
func (c *Catalog) isCreated(repo pullthrough.Repo) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	return r != nil && !r.adopted
}

// add notes a repository that is created here. It reports false if one was already.
func (c *Catalog) add(repo pullthrough.Repo, settings CatalogRepository) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.repos[repo]; r != nil && !r.adopted {
		return false
	}
	c.addLocked(repo, settings)
	return true
}

// adoptLocked notes a repository that the Store has.
func (c *Catalog) adoptLocked(repo pullthrough.Repo) *repository {
	r := c.addLocked(repo, c.complete(CatalogRepository{}))
	r.adopted = true
	return r
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

func (c *Catalog) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Catalog) warn(ctx context.Context, what string, err error) {
	cmp.Or(c.Logger, slog.Default()).WarnContext(ctx, what, "err", err)
}
