package shape_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

func TestStrings(t *testing.T) {
	const kms = "arn:aws:kms:us-east-1:123456789012:key/0a1b-2c"
	for _, c := range []struct {
		name  string
		shape shape.String
		value string
		want  string // of the constraint; "": it is kept
	}{
		{"RegistryID", shape.RegistryID, "123456789012", ""},
		{"RegistryID", shape.RegistryID, "1234567890123", "pattern: [0-9]{12}"},
		{"RegistryID", shape.RegistryID, "", "pattern: [0-9]{12}"},
		{"RegistryID", shape.RegistryID, "12345678901a", "pattern: [0-9]{12}"},
		{"RegistryID", shape.RegistryID, "123456789012\n", "pattern: [0-9]{12}"},
		{"characters, not bytes", shape.Description, strings.Repeat("ä", 256), ""},
		{"characters, not bytes", shape.Description, strings.Repeat("ä", 257), "length less than or equal to 256"},
		{"TemplatePrefix", shape.TemplatePrefix, "a", ""},
		{"TemplatePrefix", shape.TemplatePrefix, "ROOT", ""},
		{"TemplatePrefix", shape.TemplatePrefix, strings.Repeat("a", 256), ""},
		{"TemplatePrefix", shape.TemplatePrefix, strings.Repeat("a", 257), "length less than or equal to 256"},
		{"TemplatePrefix", shape.TemplatePrefix, "", "length greater than or equal to 1"},
		{"KMSKey", shape.KMSKey, "", ""},
		{"KMSKey", shape.KMSKey, kms, ""},
		{"KMSKey", shape.KMSKey, strings.Replace(kms, "aws", "aws-us-gov", 1), ""},
		{"KMSKey", shape.KMSKey, "alias/mine", "pattern: ^$|arn:aws"},
		{"KMSKey", shape.KMSKey, kms + "/x", "pattern: ^$|arn:aws"},
		{"KMSKey", shape.KMSKey, "x" + kms, "pattern: ^$|arn:aws"},
		{"EncryptionType", shape.EncryptionType, "KMS_DSSE", ""},
		{"EncryptionType", shape.EncryptionType, "", "enum value set: [AES256, KMS, KMS_DSSE]"},
		{"Mutability", shape.Mutability, "Mutable", "enum value set: [MUTABLE, IMMUTABLE, IMMUTABLE_WITH_EXCLUSION, MUTABLE_WITH_EXCLUSION]"},
		{"Filter", shape.Filter, "release-*_1.x", ""},
		{"Filter", shape.Filter, "a b", "pattern: ^[0-9a-zA-Z._*-]{1,128}$"},
		{"Filter", shape.Filter, strings.Repeat("a", 129), "length less than or equal to 128"},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws:iam::123456789012:role/team/scanner", ""},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws-us-gov:iam::123456789012:user/a+=,.@-b", ""},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws:iam::123456789012:root", "pattern: ^arn:aws"},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws:iam::123456789012:role/", "pattern: ^arn:aws"},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws:sts::123456789012:assumed-role/a/b", "pattern: ^arn:aws"},
		{"PrincipalARN", shape.PrincipalARN, "arn:aws:iam::123456789012:role/" + strings.Repeat("a", 200), "length less than or equal to 200"},
	} {
		t.Run(c.name+" "+c.value[:min(len(c.value), 20)], func(t *testing.T) {
			err := c.shape.Check("x", c.value)
			if c.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.ErrorContains(t, err, "Invalid parameter at 'x' failed to satisfy constraint: 'Member must ")
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func TestMembers(t *testing.T) {
	bad, good := "x", "123456789012"
	assert.EqualError(t, shape.RegistryID.Need("id", nil), "Invalid parameter at 'id' failed to satisfy constraint: 'Member must not be null'")
	assert.Error(t, shape.RegistryID.Need("id", &bad))
	assert.NoError(t, shape.RegistryID.Need("id", &good))
	assert.NoError(t, shape.RegistryID.May("id", nil))
	assert.Error(t, shape.RegistryID.May("id", &bad))

	assert.NoError(t, shape.RegistryID.Each("ids", nil, 1, 2), "not sent")
	assert.NoError(t, shape.RegistryID.Each("ids", []string{good, good}, 1, 2))
	assert.EqualError(t, shape.RegistryID.Each("ids", []string{}, 1, 2), "Invalid parameter at 'ids' failed to satisfy constraint: 'Member must have length greater than or equal to 1'")
	assert.EqualError(t, shape.RegistryID.Each("ids", []string{good, good, good}, 1, 2), "Invalid parameter at 'ids' failed to satisfy constraint: 'Member must have length less than or equal to 2'")
	assert.EqualError(t, shape.RegistryID.Each("ids", []string{good, bad}, 1, 2),
		"Invalid parameter at 'ids' failed to satisfy constraint: 'Member must satisfy constraint: [Member must satisfy regular expression pattern: [0-9]{12}]'")

	assert.NoError(t, shape.Number("n", nil, 1, 9))
	for n, ok := range map[int64]bool{-1: false, 0: false, 1: true, 9: true, 10: false} {
		assert.Equal(t, ok, shape.Number("n", &n, 1, 9) == nil, n)
	}
	assert.EqualError(t, shape.Number("n", new(int64(10)), 1, 9), "Invalid parameter at 'n' failed to satisfy constraint: 'Member must have value less than or equal to 9'")
}
