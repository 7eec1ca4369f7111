package conformance_test

import (
	_ "github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"
	_ "github.com/ecr-pullthrough/pullthrough/diststore"
	_ "github.com/stretchr/testify/require"
)
