package ecrapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// saving is the state of writing the file. Catalog.mu guards it.
type saving struct {
	busy  bool        // a goroutine writes
	stale bool        // there is something new to write
	ended *sync.Cond  // signals that busy has become false
	rest  time.Time   // the end of the pause, in which only Save writes
	later *time.Timer // writes when the pause is over; nil: nothing is to be written
}

// The more there is in a file, the longer it takes to write. With the pauses most pulls
// do not wait for a write, and writing takes a tenth of the time at most.
const (
	minRest    = 50 * time.Millisecond
	restFactor = 10
)

// catalogFile is the content of the file.
type catalogFile struct {
	Version      int              `json:"version"`
	Repositories []fileRepository `json:"repositories"`
}

const catalogVersion = 1

type fileRepository struct {
	Account string `json:"account,omitempty"`
	Region  string `json:"region,omitempty"`
	Name    string `json:"name"`
	Adopted bool   `json:"adopted,omitempty"` // it was not created here
	CatalogRepository
	Images []image `json:"images,omitempty"`
}

// Load reads the File and replaces all notes by its content. A File that does not exist
// is no error, nor is one that is damaged, such as by a disk that was full: it is renamed
// to File + ".damaged", which the Logger is told, and what the Store has is noted anew.
// A File of a newer version is an error. Load must be called before the first use.
func (c *Catalog) Load() error {
	if c.File == "" {
		return nil
	}
	content, err := os.ReadFile(c.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	var file catalogFile
	err = json.Unmarshal(content, &file)
	if err == nil && file.Version > catalogVersion {
		return fmt.Errorf("catalog: %s: version %d is not known", c.File, file.Version)
	}
	if err == nil && file.Version != catalogVersion {
		err = errors.New("it has no version")
	}
	if err != nil {
		aside := c.File + ".damaged"
		c.warn(context.Background(), "the damaged file of the catalog is set aside as "+aside, errors.Join(err, os.Rename(c.File, aside)))
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loadLocked(file)
	return nil
}

func (c *Catalog) loadLocked(file catalogFile) {
	c.repos = nil
	for _, from := range file.Repositories {
		r := c.addLocked(pullthrough.Repo{Account: from.Account, Region: from.Region, Name: from.Name}, from.CatalogRepository)
		r.adopted = from.Adopted
		for _, img := range from.Images {
			for _, tag := range img.Tags {
				r.tags[tag] = img.Digest
			}
			img.Tags = nil
			r.images[img.Digest] = img
		}
	}
}

// Save writes the File, if there is one. A program calls it at its end: after Save has
// returned, nothing is written until something changes.
func (c *Catalog) Save() error {
	if c.File == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.busy {
		c.ended.Wait()
	}
	if c.later != nil {
		c.later.Stop()
		c.later = nil
	}
	err := c.saveLocked()
	if err == nil {
		c.catchUpLocked(context.Background()) // writes what came meanwhile
	}
	return err
}

// writeChange makes sure that the File gets what has changed. It writes the File itself,
// unless another goroutine writes it or the pause is not over. A failure is logged only:
// the notes in memory are right.
func (c *Catalog) writeChange(ctx context.Context) {
	if c.File == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = true
	c.catchUpLocked(ctx)
}

// catchUpLocked writes what is new, now or when the pause is over.
func (c *Catalog) catchUpLocked(ctx context.Context) {
	if !c.stale || c.busy || c.later != nil {
		return
	}
	if wait := time.Until(c.rest); wait > 0 {
		c.later = time.AfterFunc(wait, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.later = nil
			c.catchUpLocked(context.Background())
		})
		return
	}
	if err := c.saveLocked(); err != nil {
		c.warn(ctx, "the catalog could not be saved", err)
		return // the next change tries again
	}
	c.catchUpLocked(ctx)
}

// saveLocked writes all that is known now. It does not hold mu while it writes.
func (c *Catalog) saveLocked() error {
	if c.ended == nil {
		c.ended = sync.NewCond(&c.mu)
	}
	c.busy, c.stale = true, false
	start := time.Now()
	file := c.fileLocked()
	c.mu.Unlock()
	err := file.write(c.File)
	c.mu.Lock()
	c.busy = false
	c.ended.Broadcast()
	if err != nil {
		c.stale = true
		return err
	}
	c.rest = time.Now().Add(max(minRest, restFactor*time.Since(start)))
	return nil
}

func (c *Catalog) fileLocked() catalogFile {
	file := catalogFile{Version: catalogVersion, Repositories: []fileRepository{}}
	for repo, r := range c.repos {
		to := fileRepository{Account: repo.Account, Region: repo.Region, Name: repo.Name, Adopted: r.adopted, CatalogRepository: r.CatalogRepository}
		tags := tagsOf(r.tags)
		for d, img := range r.images {
			img.Tags = tags[d]
			to.Images = append(to.Images, img)
		}
		file.Repositories = append(file.Repositories, to)
	}
	return file
}

// write replaces the file as a whole: a reader gets the old one or the new one.
func (f catalogFile) write(name string) error {
	slices.SortFunc(f.Repositories, func(x, y fileRepository) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Region, y.Region), cmp.Compare(x.Name, y.Name))
	})
	for _, r := range f.Repositories {
		slices.SortFunc(r.Images, func(x, y image) int { return cmp.Compare(x.Digest, y.Digest) })
	}
	content, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	temp := name + ".new"
	err = os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = writeSynced(temp, content)
	}
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		return fmt.Errorf("catalog: %w", errors.Join(err, ignoreMissing(os.Remove(temp))))
	}
	return nil
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

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
