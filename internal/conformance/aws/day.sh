#!/usr/bin/env bash
# A day of work with the AWS CLI and crane, from the first template to the end of everything.
# .ci/clients runs it, with AWS_ENDPOINT_URL_ECR (fakeecr -require-login, which knows the secrets
# ecr-pullthroughcache/hub and, with a wrong password, ecr-pullthroughcache/wrong), UPSTREAM
# (the URL of ./upstream) and CRANE. It leaves fakeecr as it was.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DOCKER_CONFIG=$work/docker
host=${AWS_ENDPOINT_URL_ECR#http://}
repo=docker-hub/library/app
arn=arn:aws:ecr:us-east-1:123456789012:repository/$repo
secret=arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache
policy='{"Version":"2012-10-17","Statement":[{"Sid":"pull","Effect":"Allow","Principal":"*","Action":"ecr:BatchGetImage"}]}'
lifecycle='{"rules":[{"rulePriority":1,"selection":{"tagStatus":"untagged","countType":"imageCountMoreThan","countNumber":14},"action":{"type":"expire"}}]}'

fail() {
	echo "the AWS CLI's day: $*" >&2
	exit 1
}

is() { # WANT GOT WHAT
	[ "$2" = "$1" ] || fail "$3: got $(printf %q "$2"), want $(printf %q "$1")"
	echo "aws $3"
}

does() { # QUERY WANT OPERATION...: what the query finds in the answer, lists with tabs between
	local query=$1 want=$2 got
	shift 2
	got=$(aws ecr "$@" --output text --query "$query") || fail "$* ended with status $?"
	is "$want" "$got" "$1"
}

fails() { # EXCEPTION OPERATION...
	local want=$1
	shift
	! aws ecr "$@" >/dev/null 2>"$work/err" || fail "$*: want $want"
	is "$want" "$(sed -n 's/.*An error occurred (\([A-Za-z]*\)) when calling.*/\1/p' "$work/err")" "$1, refused"
}

pull() { # prints the digest
	"$CRANE" pull "$host/$repo:v1" "$work/image.tar" >&2 || fail "crane pull"
	"$CRANE" digest "$host/$repo:v1"
}

refused() { # CODE: crane is
	! "$CRANE" pull "$host/$repo:v1" "$work/image.tar" 2>"$work/err" || fail "crane pull: want $1"
	grep -q "$1" "$work/err" || fail "crane pull: want $1, got $(cat "$work/err")"
	echo "crane pull, $1"
}

asked() { # MANIFESTS BLOBS WHEN: what upstream was asked for since the last time
	local got
	for _ in $(seq 50); do
		got=$(curl -sSf "$UPSTREAM/requests" | awk '/\/manifests\/v1 /{m++} /\/blobs\//{b++} END {print NR, m+0, b+0}')
		[ "$got" = "$(($1 + $2)) $1 $2" ] && break
		sleep 0.1
	done
	is "$(($1 + $2)) $1 $2" "$got" "$3: all, manifest and blob requests upstream"
	curl -sSf -X DELETE "$UPSTREAM/requests"
}

template=(--prefix docker-hub --applied-for PULL_THROUGH_CACHE --resource-tags Key=team,Value=ops
	--custom-role-arn arn:aws:iam::123456789012:role/templates --lifecycle-policy "$lifecycle")
does 'repositoryCreationTemplate.[prefix,imageTagMutability]' $'docker-hub\tMUTABLE' create-repository-creation-template "${template[@]}"
fails TemplateAlreadyExistsException create-repository-creation-template "${template[@]}"
does 'repositoryCreationTemplates[].resourceTags[].Value' ops describe-repository-creation-templates --prefixes docker-hub

rule=(--ecr-repository-prefix docker-hub --upstream-registry-url registry-1.docker.io)
fails SecretNotFoundException create-pull-through-cache-rule "${rule[@]}" --credential-arn "$secret/none-a1B2c3"
fails UnsupportedUpstreamRegistryException create-pull-through-cache-rule "${rule[@]}"
does '[upstreamRegistry,credentialArn]' $'docker-hub\t'"$secret/hub-a1B2c3" create-pull-through-cache-rule "${rule[@]}" --credential-arn "$secret/hub-a1B2c3"
fails PullThroughCacheRuleAlreadyExistsException create-pull-through-cache-rule "${rule[@]}" --credential-arn "$secret/hub-a1B2c3"
does 'pullThroughCacheRules[].ecrRepositoryPrefix' docker-hub describe-pull-through-cache-rules

fails RepositoryNotFoundException describe-repositories --repository-names "$repo"
refused UNAUTHORIZED
does 'authorizationData[].proxyEndpoint' "$AWS_ENDPOINT_URL_ECR" get-authorization-token
aws ecr get-login-password | "$CRANE" auth login "$host" -u AWS --password-stdin 2>"$work/err" || fail "crane auth login: $(cat "$work/err")"
first=$(pull)
asked 1 2 "a cold pull"

does 'repositories[].[repositoryArn,repositoryUri,imageTagMutability]' "$arn"$'\t'"$host/$repo"$'\tMUTABLE' describe-repositories
does 'imageDetails[].[imageDigest,imageTags[0]]' "$first"$'\tv1' describe-images --repository-name "$repo"
does 'imageIds[].[imageTag,imageDigest]' $'v1\t'"$first" list-images --repository-name "$repo"
does 'tags[].[Key,Value]' $'team\tops' list-tags-for-resource --resource-arn "$arn"
does '@' '' tag-resource --resource-arn "$arn" --tags Key=cost,Value=4711
does 'sort_by(tags,&Key)[].Value' $'4711\tops' list-tags-for-resource --resource-arn "$arn"
does '@' '' untag-resource --resource-arn "$arn" --tag-keys team
does 'tags[].[Key,Value]' $'cost\t4711' list-tags-for-resource --resource-arn "$arn"

fails RepositoryPolicyNotFoundException get-repository-policy --repository-name "$repo"
fails InvalidParameterException set-repository-policy --repository-name "$repo" --policy-text 'no policy'
does repositoryName "$repo" set-repository-policy --repository-name "$repo" --policy-text "$policy"
does 'policyText' "$policy" get-repository-policy --repository-name "$repo"
does 'lifecyclePolicyText' "$lifecycle" get-lifecycle-policy --repository-name "$repo"
does 'lifecyclePolicyText' "${lifecycle/14/7}" put-lifecycle-policy --repository-name "$repo" --lifecycle-policy-text "${lifecycle/14/7}"
does 'lifecyclePolicyText' "${lifecycle/14/7}" delete-lifecycle-policy --repository-name "$repo"
fails LifecyclePolicyNotFoundException get-lifecycle-policy --repository-name "$repo"

curl -sSf -X POST "$UPSTREAM/move"
is "$first" "$(pull)" "after the tag moved upstream"
asked 0 0 "a warm pull"
does '[imageIds[].[imageTag,imageDigest],failures][]' $'v1\t'"$first" batch-delete-image --repository-name "$repo" --image-ids imageTag=v1
does 'failures[].failureCode' ImageNotFound batch-delete-image --repository-name "$repo" --image-ids imageTag=v1
fails ImageNotFoundException describe-images --repository-name "$repo" --image-ids imageTag=v1
does 'repositories[].repositoryName' "$repo" describe-repositories
second=$(pull)
[ "$second" != "$first" ] || fail "the pull of a deleted tag did not ask upstream"
asked 1 2 "the pull of a deleted tag"
does 'imageDetails[].[imageDigest,imageTags[0]]' "$second"$'\tv1' describe-images --repository-name "$repo"

does isValid True validate-pull-through-cache-rule --ecr-repository-prefix docker-hub
does credentialArn "$secret/wrong-a1B2c3" update-pull-through-cache-rule --ecr-repository-prefix docker-hub --credential-arn "$secret/wrong-a1B2c3"
does isValid False validate-pull-through-cache-rule --ecr-repository-prefix docker-hub
fails SecretNotFoundException update-pull-through-cache-rule --ecr-repository-prefix docker-hub --credential-arn "$secret/none-a1B2c3"
fails InvalidParameterException update-pull-through-cache-rule --ecr-repository-prefix docker-hub
does credentialArn "$secret/hub" update-pull-through-cache-rule --ecr-repository-prefix docker-hub --credential-arn "$secret/hub"
does isValid True validate-pull-through-cache-rule --ecr-repository-prefix docker-hub

fails RepositoryNotEmptyException delete-repository --repository-name "$repo"
does repository.repositoryArn "$arn" delete-repository --repository-name "$repo" --force
fails RepositoryNotFoundException describe-repositories --repository-names "$repo"
fails RepositoryNotFoundException list-images --repository-name "$repo"
fails RepositoryNotFoundException delete-repository --repository-name "$repo" --force
does repositoryCreationTemplate.prefix docker-hub delete-repository-creation-template --prefix docker-hub
does 'repositoryCreationTemplates' '' describe-repository-creation-templates --prefixes docker-hub
fails TemplateNotFoundException delete-repository-creation-template --prefix docker-hub
does ecrRepositoryPrefix docker-hub delete-pull-through-cache-rule --ecr-repository-prefix docker-hub
fails PullThroughCacheRuleNotFoundException describe-pull-through-cache-rules --ecr-repository-prefixes docker-hub
fails PullThroughCacheRuleNotFoundException delete-pull-through-cache-rule --ecr-repository-prefix docker-hub
refused NAME_UNKNOWN
asked 0 0 "the end"
