package ecrapi

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// DescribeRepositoryCreationTemplatesInput is a request; nil members were not sent.
type DescribeRepositoryCreationTemplatesInput struct {
	Prefixes   []string `json:"prefixes,omitempty"`
	NextToken  *string  `json:"nextToken,omitempty"`
	MaxResults *int64   `json:"maxResults,omitempty"` // nil: 100
}

// DescribeRepositoryCreationTemplatesOutput is an answer. NextToken is "" on the last
// page.
type DescribeRepositoryCreationTemplatesOutput struct {
	RegistryId                  string     `json:"registryId,omitempty"`
	RepositoryCreationTemplates []Template `json:"repositoryCreationTemplates"`
	NextToken                   string     `json:"nextToken,omitempty"`
}

// DescribeRepositoryCreationTemplates returns templates in the order of their
// prefixes (describe-order). Templates that are asked for by prefix come on one page, and
// those that do not exist are left out (template-unknown-prefix). A token cannot be used
// together with prefixes (token-with-filter). See [DescribeRepositoryCreationTemplates]
// for the errors.
//
// [DescribeRepositoryCreationTemplates]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeRepositoryCreationTemplates.html
func (a *API) DescribeRepositoryCreationTemplates(ctx context.Context, id pullthrough.Identity, in DescribeRepositoryCreationTemplatesInput) (out DescribeRepositoryCreationTemplatesOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.TemplatePrefix.Each("prefixes", in.Prefixes, 0, 0)); err != nil {
		return out, err
	}
	p, err := pageOf("DescribeRepositoryCreationTemplates", in.NextToken, in.MaxResults)
	switch {
	case err != nil:
		return out, err
	case len(in.Prefixes) > 0 && hasToken(in.NextToken):
		return out, &Error{invalidParameter, "A nextToken cannot be used together with prefixes."}
	}
	settings, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	out.RegistryId = reg.account
	if len(in.Prefixes) > 0 {
		out.RepositoryCreationTemplates = templates.only(settings.Templates, in.Prefixes)
	} else {
		out.RepositoryCreationTemplates, out.NextToken = cutPage(p, settings.Templates, templates.key)
	}
	if out.RepositoryCreationTemplates == nil {
		out.RepositoryCreationTemplates = []Template{} // never null
	}
	return out, nil
}

// DeleteRepositoryCreationTemplateInput is a request; nil members were not sent.
type DeleteRepositoryCreationTemplateInput struct {
	Prefix *string `json:"prefix,omitempty"` // required
}

// DeleteRepositoryCreationTemplateOutput is an answer with the template that was deleted.
type DeleteRepositoryCreationTemplateOutput CreateRepositoryCreationTemplateOutput

// DeleteRepositoryCreationTemplate deletes a template. Repositories that were
// created by it stay as they are. See [DeleteRepositoryCreationTemplate] for the
// errors.
//
// [DeleteRepositoryCreationTemplate]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteRepositoryCreationTemplate.html
func (a *API) DeleteRepositoryCreationTemplate(ctx context.Context, id pullthrough.Identity, in DeleteRepositoryCreationTemplateInput) (out DeleteRepositoryCreationTemplateOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.TemplatePrefix.Need("prefix", in.Prefix)); err != nil {
		return out, err
	}
	var t Template
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Templates, t, err = templates.remove(reg, s.Templates, *in.Prefix)
		return err
	})
	if err != nil {
		return out, err
	}
	return DeleteRepositoryCreationTemplateOutput{reg.account, &t}, nil
}
