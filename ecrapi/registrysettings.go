package ecrapi

import (
	"context"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// GetRegistryPolicyInput is a request without members.
type GetRegistryPolicyInput struct{}

// GetRegistryPolicyOutput is an answer.
type GetRegistryPolicyOutput struct {
	RegistryId string `json:"registryId,omitempty"`
	PolicyText string `json:"policyText,omitempty"`
}

// GetRegistryPolicy returns the policy of the registry, as it was sent. See
// [GetRegistryPolicy] for the errors.
//
// [GetRegistryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetRegistryPolicy.html
func (a *API) GetRegistryPolicy(ctx context.Context, id pullthrough.Identity, _ GetRegistryPolicyInput) (out GetRegistryPolicyOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	s, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	text, err := registryPolicy.get(place{reg: reg}, &s)
	return GetRegistryPolicyOutput{reg.account, text}, err
}

// PutRegistryPolicyInput is a request; nil members were not sent.
type PutRegistryPolicyInput struct {
	PolicyText *string `json:"policyText,omitempty"` // required
}

// PutRegistryPolicyOutput is an answer.
type PutRegistryPolicyOutput GetRegistryPolicyOutput

// PutRegistryPolicy keeps the policy of the registry. It must be an IAM policy with
// resources. Who may do what is the host's to say, by [pullthrough.Proxy.Authorize]. See
// [PutRegistryPolicy] for the errors.
//
// [PutRegistryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutRegistryPolicy.html
func (a *API) PutRegistryPolicy(ctx context.Context, id pullthrough.Identity, in PutRegistryPolicyInput) (out PutRegistryPolicyOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.RegistryPolicy.Need("policyText", in.PolicyText), checkPolicy("PolicyText", in.PolicyText, "registry")); err != nil {
		return out, err
	}
	err = a.update(ctx, reg, func(s *Settings) error {
		s.RegistryPolicy = *in.PolicyText
		return nil
	})
	return PutRegistryPolicyOutput{reg.account, *in.PolicyText}, err
}

// DeleteRegistryPolicyInput is a request without members.
type DeleteRegistryPolicyInput struct{}

// DeleteRegistryPolicyOutput is an answer with the policy that was deleted.
type DeleteRegistryPolicyOutput GetRegistryPolicyOutput

// DeleteRegistryPolicy deletes the policy of the registry. See [DeleteRegistryPolicy] for
// the errors.
//
// [DeleteRegistryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteRegistryPolicy.html
func (a *API) DeleteRegistryPolicy(ctx context.Context, id pullthrough.Identity, _ DeleteRegistryPolicyInput) (out DeleteRegistryPolicyOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	out.RegistryId = reg.account
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		out.PolicyText, err = registryPolicy.remove(place{reg: reg}, s)
		return err
	})
	return out, err
}

// DescribeRegistryInput is a request without members.
type DescribeRegistryInput struct{}

// DescribeRegistryOutput is an answer.
type DescribeRegistryOutput struct {
	RegistryId               string                   `json:"registryId,omitempty"`
	ReplicationConfiguration ReplicationConfiguration `json:"replicationConfiguration"`
}

// ReplicationConfiguration says where images are replicated to. Here none is.
type ReplicationConfiguration struct {
	Rules []struct{} `json:"rules"` // there is none
}

// DescribeRegistry describes the registry. See [DescribeRegistry] for the errors.
//
// [DescribeRegistry]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeRegistry.html
func (a *API) DescribeRegistry(ctx context.Context, id pullthrough.Identity, _ DescribeRegistryInput) (out DescribeRegistryOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if _, err := a.load(ctx, reg); err != nil {
		return out, err
	}
	return DescribeRegistryOutput{reg.account, ReplicationConfiguration{[]struct{}{}}}, nil
}

// accountSettings are the account settings and their values. The first value counts where
// nothing was set (account-setting-default).
var accountSettings = map[string][]string{
	"BASIC_SCAN_TYPE_VERSION": {"AWS_NATIVE"},
	"REGISTRY_POLICY_SCOPE":   {"V2"},
	"BLOB_MOUNTING":           {"DISABLED", "ENABLED"},
}

// AccountSetting is a setting of the registry.
type AccountSetting struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// GetAccountSettingInput is a request; nil members were not sent.
type GetAccountSettingInput struct {
	Name *string `json:"name,omitempty"` // required
}

// GetAccountSettingOutput is an answer.
type GetAccountSettingOutput AccountSetting

// GetAccountSetting returns an account setting. See [GetAccountSetting] for the errors.
//
// [GetAccountSetting]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAccountSetting.html
func (a *API) GetAccountSetting(ctx context.Context, id pullthrough.Identity, in GetAccountSettingInput) (out GetAccountSettingOutput, err error) {
	values, err := accountSetting(in.Name)
	if err != nil {
		return out, err
	}
	s, err := a.load(ctx, a.registry(id.Account, id.Region))
	if err != nil {
		return out, err
	}
	out = GetAccountSettingOutput{*in.Name, values[0]}
	for _, set := range s.AccountSettings {
		if set.Name == out.Name {
			out.Value = set.Value
		}
	}
	return out, nil
}

// accountSetting returns the values that a setting may have.
func accountSetting(name *string) ([]string, error) {
	if err := fails(shape.AccountSettingName.Need("name", name)); err != nil {
		return nil, err
	}
	values, known := accountSettings[*name]
	if !known {
		return nil, fails(&shape.Error{At: "name", Constraint: "Member must be the name of an account setting"})
	}
	return values, nil
}

// PutAccountSettingInput is a request; nil members were not sent.
type PutAccountSettingInput struct {
	Name  *string `json:"name,omitempty"`  // required
	Value *string `json:"value,omitempty"` // required
}

// PutAccountSettingOutput is an answer.
type PutAccountSettingOutput AccountSetting

// PutAccountSetting changes an account setting. It is kept, and has no effect here. See
// [PutAccountSetting] for the errors.
//
// [PutAccountSetting]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutAccountSetting.html
func (a *API) PutAccountSetting(ctx context.Context, id pullthrough.Identity, in PutAccountSettingInput) (out PutAccountSettingOutput, err error) {
	values, err := accountSetting(in.Name)
	if err != nil {
		return out, err
	}
	if err := fails(shape.String{Enum: values}.Need("value", in.Value)); err != nil {
		return out, err
	}
	next := AccountSetting{*in.Name, *in.Value}
	err = a.update(ctx, a.registry(id.Account, id.Region), func(s *Settings) error {
		s.AccountSettings = append(slices.DeleteFunc(slices.Clone(s.AccountSettings), func(set AccountSetting) bool { return set.Name == next.Name }), next)
		return nil
	})
	return PutAccountSettingOutput(next), err
}
