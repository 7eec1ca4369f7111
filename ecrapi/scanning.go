package ecrapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// The values of scanType and scanFrequency.
const (
	basicScan  = "BASIC"
	scanOnPush = "SCAN_ON_PUSH"
	continuous = "CONTINUOUS_SCAN"
	manual     = "MANUAL"
)

// RegistryScanningConfiguration says which repositories of a registry are scanned, and when.
// It is kept; nothing is scanned here.
type RegistryScanningConfiguration struct {
	ScanType *string        `json:"scanType,omitempty"` // BASIC, ENHANCED
	Rules    []ScanningRule `json:"rules"`
}

// ScanningRule says when the repositories whose names match are scanned.
type ScanningRule struct {
	ScanFrequency     *string          `json:"scanFrequency,omitempty"` // SCAN_ON_PUSH, CONTINUOUS_SCAN, MANUAL; required
	RepositoryFilters []ScanningFilter `json:"repositoryFilters"`       // required
}

// ScanningFilter matches names of repositories: those that contain it, or, if it has an *,
// those that match it as a whole.
type ScanningFilter struct {
	Filter     *string `json:"filter,omitempty"`     // required
	FilterType *string `json:"filterType,omitempty"` // WILDCARD; required
}

func (c *RegistryScanningConfiguration) check() error {
	if err := fails(shape.ScanType.May("scanType", c.ScanType), shape.Length("rules", len(c.Rules), 0, 2)); err != nil {
		return err
	}
	for i, rule := range c.Rules {
		at := fmt.Sprintf("rules.%d.member.", i+1)
		if err := fails(shape.ScanFrequency.Need(at+"scanFrequency", rule.ScanFrequency), rule.checkFilters(at+"repositoryFilters")); err != nil {
			return err
		}
		if basic := or(value(c.ScanType), basicScan) == basicScan; basic == (*rule.ScanFrequency == continuous) && *rule.ScanFrequency != scanOnPush {
			return &shape.Error{At: at + "scanFrequency", Constraint: "The scan frequency " + *rule.ScanFrequency + " does not go with the scan type"}
		}
	}
	return nil
}

func (r *ScanningRule) checkFilters(at string) error {
	if r.RepositoryFilters == nil {
		return &shape.Error{At: at, Constraint: "Member must not be null"}
	}
	if err := shape.Length(at, len(r.RepositoryFilters), 0, 100); err != nil {
		return err
	}
	for i, f := range r.RepositoryFilters {
		at := fmt.Sprintf("%s.%d.member.", at, i+1)
		if err := fails(shape.ScanFilter.Need(at+"filter", f.Filter), shape.FilterType.Need(at+"filterType", f.FilterType)); err != nil {
			return err
		}
	}
	return nil
}

// frequency is when a repository is scanned, and by which filters. Where no rule matches,
// the repository's own setting counts (scan-frequency).
func (c *RegistryScanningConfiguration) frequency(name string, r CatalogRepository) (frequency string, by []ScanningFilter) {
	frequency, by = manual, []ScanningFilter{}
	if r.ImageScanningConfiguration.ScanOnPush && or(value(c.ScanType), basicScan) == basicScan {
		frequency = scanOnPush
	}
	for _, rule := range c.Rules {
		matching := slices.DeleteFunc(slices.Clone(rule.RepositoryFilters), func(f ScanningFilter) bool { return !matchesName(*f.Filter, name) })
		if len(matching) > 0 && (len(by) == 0 || *rule.ScanFrequency == continuous) {
			frequency, by = *rule.ScanFrequency, matching
		}
	}
	return frequency, by
}

func matchesName(filter, name string) bool {
	if !strings.Contains(filter, "*") {
		return strings.Contains(name, filter)
	}
	return matchesWildcard(filter, name)
}

// matchesWildcard reports whether a filter of the type WILDCARD matches the whole name: a *
// stands for any text. For path.Match it does not stand for slashes.
func matchesWildcard(filter, name string) bool {
	flat := strings.NewReplacer("/", "\x00")
	match, err := path.Match(flat.Replace(filter), flat.Replace(name))
	return err == nil && match
}

// GetRegistryScanningConfigurationInput is a request without members.
type GetRegistryScanningConfigurationInput struct{}

// GetRegistryScanningConfigurationOutput is an answer.
type GetRegistryScanningConfigurationOutput struct {
	RegistryId            string                         `json:"registryId,omitempty"`
	ScanningConfiguration *RegistryScanningConfiguration `json:"scanningConfiguration,omitempty"`
}

// GetRegistryScanningConfiguration returns the scanning configuration of the registry:
// BASIC without rules if none was put. See [GetRegistryScanningConfiguration] for the errors.
//
// [GetRegistryScanningConfiguration]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetRegistryScanningConfiguration.html
func (a *API) GetRegistryScanningConfiguration(ctx context.Context, id pullthrough.Identity, _ GetRegistryScanningConfigurationInput) (out GetRegistryScanningConfigurationOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	s, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	return GetRegistryScanningConfigurationOutput{reg.account, s.scanning()}, nil
}

func (s *Settings) scanning() *RegistryScanningConfiguration {
	if s.Scanning == nil {
		return &RegistryScanningConfiguration{ScanType: new(basicScan), Rules: []ScanningRule{}}
	}
	return s.Scanning
}

// PutRegistryScanningConfigurationInput is a request; nil members were not sent.
type PutRegistryScanningConfigurationInput struct {
	ScanType *string        `json:"scanType,omitempty"` // nil: BASIC
	Rules    []ScanningRule `json:"rules,omitempty"`
}

// PutRegistryScanningConfigurationOutput is an answer.
type PutRegistryScanningConfigurationOutput struct {
	RegistryScanningConfiguration *RegistryScanningConfiguration `json:"registryScanningConfiguration,omitempty"`
}

// PutRegistryScanningConfiguration keeps the scanning configuration of the registry. See
// [PutRegistryScanningConfiguration] for the errors.
//
// [PutRegistryScanningConfiguration]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutRegistryScanningConfiguration.html
func (a *API) PutRegistryScanningConfiguration(ctx context.Context, id pullthrough.Identity, in PutRegistryScanningConfigurationInput) (out PutRegistryScanningConfigurationOutput, err error) {
	next := &RegistryScanningConfiguration{in.ScanType, in.Rules}
	if err := fails(next.check()); err != nil {
		return out, err
	}
	if next.ScanType == nil {
		next.ScanType = new(basicScan)
	}
	if next.Rules == nil {
		next.Rules = []ScanningRule{}
	}
	err = a.update(ctx, a.registry(id.Account, id.Region), func(s *Settings) error {
		s.Scanning = next
		return nil
	})
	return PutRegistryScanningConfigurationOutput{next}, err
}

// PutImageScanningConfigurationInput is a request; nil members were not sent.
type PutImageScanningConfigurationInput struct {
	RegistryId                 *string                     `json:"registryId,omitempty"`
	RepositoryName             *string                     `json:"repositoryName,omitempty"`             // required
	ImageScanningConfiguration *ImageScanningConfiguration `json:"imageScanningConfiguration,omitempty"` // required
}

// PutImageScanningConfigurationOutput is an answer.
type PutImageScanningConfigurationOutput struct {
	RegistryId                 string                     `json:"registryId,omitempty"`
	RepositoryName             string                     `json:"repositoryName,omitempty"`
	ImageScanningConfiguration ImageScanningConfiguration `json:"imageScanningConfiguration"`
}

// PutImageScanningConfiguration keeps the scanning configuration of a repository. See
// [PutImageScanningConfiguration] for the errors.
//
// [PutImageScanningConfiguration]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutImageScanningConfiguration.html
func (a *API) PutImageScanningConfiguration(ctx context.Context, id pullthrough.Identity, in PutImageScanningConfigurationInput) (out PutImageScanningConfigurationOutput, err error) {
	required := error(nil)
	if in.ImageScanningConfiguration == nil {
		required = &shape.Error{At: "imageScanningConfiguration", Constraint: "Member must not be null"}
	}
	at, r, err := a.ofRepository(ctx, id, subject{"PutImageScanningConfiguration", in.RegistryId, in.RepositoryName}, func(_ place, r *CatalogRepository) error {
		r.ImageScanningConfiguration = *in.ImageScanningConfiguration
		return nil
	}, required)
	return PutImageScanningConfigurationOutput{at.reg.account, at.repo.Name, r.ImageScanningConfiguration}, err
}

// BatchGetRepositoryScanningConfigurationInput is a request; nil members were not sent.
type BatchGetRepositoryScanningConfigurationInput struct {
	RepositoryNames []string `json:"repositoryNames,omitempty"` // required: 1 to 25
}

// BatchGetRepositoryScanningConfigurationOutput is an answer.
type BatchGetRepositoryScanningConfigurationOutput struct {
	ScanningConfigurations []RepositoryScanningConfiguration `json:"scanningConfigurations"`
	Failures               []ScanningConfigurationFailure    `json:"failures"`
}

// RepositoryScanningConfiguration says when a repository would be scanned.
type RepositoryScanningConfiguration struct {
	RepositoryArn      string           `json:"repositoryArn,omitempty"`
	RepositoryName     string           `json:"repositoryName,omitempty"`
	ScanOnPush         bool             `json:"scanOnPush"`
	ScanFrequency      string           `json:"scanFrequency,omitempty"`
	AppliedScanFilters []ScanningFilter `json:"appliedScanFilters"`
}

// ScanningConfigurationFailure says why a repository is not in an answer.
type ScanningConfigurationFailure struct {
	RepositoryName string `json:"repositoryName,omitempty"`
	FailureCode    string `json:"failureCode,omitempty"` // REPOSITORY_NOT_FOUND
	FailureReason  string `json:"failureReason,omitempty"`
}

// BatchGetRepositoryScanningConfiguration tells how the registry's rules apply to
// repositories. See [BatchGetRepositoryScanningConfiguration] for the errors.
//
// [BatchGetRepositoryScanningConfiguration]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetRepositoryScanningConfiguration.html
func (a *API) BatchGetRepositoryScanningConfiguration(ctx context.Context, id pullthrough.Identity, in BatchGetRepositoryScanningConfigurationInput) (out BatchGetRepositoryScanningConfigurationOutput, err error) {
	at, err := a.placeOf(id, nil)
	if err != nil {
		return out, err
	}
	if in.RepositoryNames == nil {
		return out, fails(&shape.Error{At: "repositoryNames", Constraint: "Member must not be null"})
	}
	if err := fails(shape.RepositoryName.Each("repositoryNames", in.RepositoryNames, 1, 25)); err != nil {
		return out, err
	}
	s, err := a.load(ctx, at.reg)
	if err == nil {
		err = a.askEach(ctx, at, id, "BatchGetRepositoryScanningConfiguration", in.RepositoryNames)
	}
	if err != nil {
		return out, err
	}
	out.ScanningConfigurations, out.Failures = []RepositoryScanningConfiguration{}, []ScanningConfigurationFailure{}
	for _, at.repo.Name = range in.RepositoryNames {
		a.await(ctx, at.repo)
		r, err := a.Images.Catalog.Repository(ctx, at.repo)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			out.Failures = append(out.Failures, ScanningConfigurationFailure{at.repo.Name, "REPOSITORY_NOT_FOUND", a.noSuchRepository(at).Message})
			continue
		case err != nil:
			return BatchGetRepositoryScanningConfigurationOutput{}, err
		}
		frequency, by := s.scanning().frequency(at.repo.Name, r)
		out.ScanningConfigurations = append(out.ScanningConfigurations, RepositoryScanningConfiguration{
			repositoryARN(at.reg, at.repo.Name), at.repo.Name, frequency == scanOnPush, frequency, by,
		})
	}
	return out, nil
}
