"""A day of work with boto3 and crane, as day.sh has it for the AWS CLI.

It compares whole answers, and the sentences of exceptions. .ci/clients runs it, with the
environment that day.sh describes. It leaves fakeecr as it was.
"""

import base64
import datetime
import json
import os
import subprocess
import tempfile
import time
import urllib.request

import boto3
import botocore.exceptions

ACCOUNT = "123456789012"
HOST = os.environ["AWS_ENDPOINT_URL_ECR"].removeprefix("http://")
REPO = "docker-hub/library/app"
ARN = f"arn:aws:ecr:us-east-1:{ACCOUNT}:repository/{REPO}"
SECRET = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:ecr-pullthroughcache/"
IN_REGISTRY = f"in the registry with id '{ACCOUNT}'"
NO_REPO = f"The repository with name '{REPO}' does not exist {IN_REGISTRY}"
NO_RULE = f"The pull through cache rule with repository prefix 'docker-hub' does not exist {IN_REGISTRY}"
NO_SECRET = (
    "The ARN of the secret specified in the pull through cache rule was not found. "
    "Update the pull through cache rule with a valid secret ARN and try again."
)
POLICY = json.dumps({
    "Version": "2012-10-17",
    "Statement": [{"Sid": "pull", "Effect": "Allow", "Principal": "*", "Action": "ecr:BatchGetImage"}],
})
LIFECYCLE = json.dumps({"rules": [{
    "rulePriority": 1,
    "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 14},
    "action": {"type": "expire"},
}]}, separators=(",", ":"))

ecr = boto3.client("ecr")
docker = tempfile.TemporaryDirectory()


def equal(want, got, what):
    assert got == want, f"{what}:\n got {got!r}\nwant {want!r}"
    print("boto3", what)


def does(operation, want, **members):
    """Calls the operation and compares its answer, times aside."""
    got = getattr(ecr, operation)(**members)
    assert got.pop("ResponseMetadata")["HTTPStatusCode"] == 200
    equal(want, without_times(got), operation)


def without_times(v):
    if isinstance(v, dict):
        for name in [name for name in v if isinstance(v[name], datetime.datetime)]:
            at = v.pop(name)
            age = datetime.datetime.now(datetime.timezone.utc) - at
            never = name == "lastEvaluatedAt" and at.timestamp() == 0
            assert never or abs(age) < datetime.timedelta(minutes=10), f"{name} is {age} ago"
        return {name: without_times(member) for name, member in v.items()}
    return [without_times(item) for item in v] if isinstance(v, list) else v


def fails(operation, exception, message, **members):
    """Calls the operation, which boto3 must answer with the exception."""
    try:
        getattr(ecr, operation)(**members)
    except botocore.exceptions.ClientError as e:
        got = (type(e).__name__, e.response["Error"]["Code"], e.response["Error"]["Message"])
        assert isinstance(e, getattr(ecr.exceptions, exception)), f"{operation}: {got}"
        equal((exception, exception, message), got, operation + ", refused")
    else:
        raise AssertionError(f"{operation}: want {exception}")


def crane(*args, ok=True):
    done = subprocess.run(
        [os.environ["CRANE"], *args], capture_output=True, text=True, env={**os.environ, "DOCKER_CONFIG": docker.name}
    )
    assert (done.returncode == 0) is ok, f"crane {args}: {done.stderr}"
    return done.stdout.strip() if ok else done.stderr


def pull():
    """Pulls the image and returns its digest."""
    crane("pull", f"{HOST}/{REPO}:v1", f"{docker.name}/image.tar")
    return crane("digest", f"{HOST}/{REPO}:v1")


def refused(code):
    said = crane("pull", f"{HOST}/{REPO}:v1", f"{docker.name}/image.tar", ok=False)
    assert code in said, f"crane pull: want {code}, got {said}"
    print("crane pull,", code)


def upstream(method, path):
    with urllib.request.urlopen(urllib.request.Request(os.environ["UPSTREAM"] + path, method=method)) as answer:
        return answer.read().decode().split("\n")


def asked(manifests, blobs, when):
    """What upstream was asked for since the last time."""
    for _ in range(50):
        lines = [line for line in upstream("GET", "/requests") if line]
        got = (len(lines), sum("/manifests/v1 " in line for line in lines), sum("/blobs/" in line for line in lines))
        if got == (manifests + blobs, manifests, blobs):
            break
        time.sleep(0.1)
    equal((manifests + blobs, manifests, blobs), got, f"{when}: all, manifest and blob requests upstream")
    upstream("DELETE", "/requests")


def prepare():
    """Makes the template and the rule."""
    template = {
        "prefix": "docker-hub", "appliedFor": ["PULL_THROUGH_CACHE"], "imageTagMutability": "MUTABLE",
        "resourceTags": [{"Key": "team", "Value": "ops"}], "lifecyclePolicy": LIFECYCLE,
        "customRoleArn": f"arn:aws:iam::{ACCOUNT}:role/templates",
    }
    made = {**template, "encryptionConfiguration": {"encryptionType": "AES256"}}
    does("create_repository_creation_template", {"registryId": ACCOUNT, "repositoryCreationTemplate": made}, **template)
    does("describe_repository_creation_templates", {"registryId": ACCOUNT, "repositoryCreationTemplates": [made]})
    rule = {"ecrRepositoryPrefix": "docker-hub", "upstreamRegistryUrl": "registry-1.docker.io"}
    fails("create_pull_through_cache_rule", "SecretNotFoundException", NO_SECRET, **rule, credentialArn=SECRET + "none")
    rule["credentialArn"] = SECRET + "hub"
    answer = {**rule, "registryId": ACCOUNT, "upstreamRegistry": "docker-hub"}
    does("create_pull_through_cache_rule", answer, **rule)
    taken = f"The pull through cache rule with repository prefix 'docker-hub' already exists {IN_REGISTRY}"
    fails("create_pull_through_cache_rule", "PullThroughCacheRuleAlreadyExistsException", taken, **rule)
    does("describe_pull_through_cache_rules", {"pullThroughCacheRules": [answer]}, ecrRepositoryPrefixes=["docker-hub"])


def login():
    fails("describe_repositories", "RepositoryNotFoundException", NO_REPO, repositoryNames=[REPO])
    refused("UNAUTHORIZED")
    (data,) = ecr.get_authorization_token()["authorizationData"]
    equal(os.environ["AWS_ENDPOINT_URL_ECR"], data["proxyEndpoint"], "get_authorization_token")
    lasts = data["expiresAt"] - datetime.datetime.now(datetime.timezone.utc)
    assert abs(lasts - datetime.timedelta(hours=12)) < datetime.timedelta(minutes=10), f"the token lasts {lasts}"
    user, password = base64.b64decode(data["authorizationToken"]).decode().split(":")
    crane("auth", "login", HOST, "-u", user, "-p", password)


def describe(digest):
    repository = {
        "repositoryArn": ARN, "registryId": ACCOUNT, "repositoryName": REPO, "repositoryUri": f"{HOST}/{REPO}",
        "imageTagMutability": "MUTABLE", "imageScanningConfiguration": {"scanOnPush": False},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }
    does("describe_repositories", {"repositories": [repository]})
    (image,) = ecr.describe_images(repositoryName=REPO)["imageDetails"]
    equal((digest, ["v1"]), (image["imageDigest"], image["imageTags"]), "describe_images")
    does("list_images", {"imageIds": [{"imageTag": "v1", "imageDigest": digest}]}, repositoryName=REPO)
    return repository


def settings():
    """Tags and policies of the repository."""
    does("list_tags_for_resource", {"tags": [{"Key": "team", "Value": "ops"}]}, resourceArn=ARN)
    does("tag_resource", {}, resourceArn=ARN, tags=[{"Key": "cost", "Value": "4711"}])
    does("untag_resource", {}, resourceArn=ARN, tagKeys=["team"])
    does("list_tags_for_resource", {"tags": [{"Key": "cost", "Value": "4711"}]}, resourceArn=ARN)

    of_repo = {"registryId": ACCOUNT, "repositoryName": REPO}
    no_policy = f"Repository policy does not exist for the repository with name '{REPO}' {IN_REGISTRY}"
    fails("get_repository_policy", "RepositoryPolicyNotFoundException", no_policy, repositoryName=REPO)
    does("set_repository_policy", {**of_repo, "policyText": POLICY}, repositoryName=REPO, policyText=POLICY)
    does("get_repository_policy", {**of_repo, "policyText": POLICY}, repositoryName=REPO)
    other = LIFECYCLE.replace("14", "7")
    does("get_lifecycle_policy", {**of_repo, "lifecyclePolicyText": LIFECYCLE}, repositoryName=REPO)
    does("put_lifecycle_policy", {**of_repo, "lifecyclePolicyText": other}, repositoryName=REPO, lifecyclePolicyText=other)
    does("delete_lifecycle_policy", {**of_repo, "lifecyclePolicyText": other}, repositoryName=REPO)
    no_policy = f"Lifecycle policy does not exist for the repository with name '{REPO}' {IN_REGISTRY}"
    fails("get_lifecycle_policy", "LifecyclePolicyNotFoundException", no_policy, repositoryName=REPO)


def refresh(first):
    """Deletes the tag, so that the next pull asks upstream, and returns its new digest."""
    upstream("POST", "/move")
    equal(first, pull(), "after the tag moved upstream")
    asked(0, 0, "a warm pull")
    tag = [{"imageTag": "v1"}]
    gone = {"imageIds": [{"imageTag": "v1", "imageDigest": first}], "failures": []}
    does("batch_delete_image", gone, repositoryName=REPO, imageIds=tag)
    missing = {"imageId": tag[0], "failureCode": "ImageNotFound", "failureReason": "Requested image not found"}
    does("batch_delete_image", {"imageIds": [], "failures": [missing]}, repositoryName=REPO, imageIds=tag)
    no_image = (
        "The image with imageId {imageDigest:'null', imageTag:'v1'} does not exist within the repository "
        f"with name '{REPO}' {IN_REGISTRY}"
    )
    fails("describe_images", "ImageNotFoundException", no_image, repositoryName=REPO, imageIds=tag)
    second = pull()
    assert second != first, "the pull of a deleted tag did not ask upstream"
    asked(1, 2, "the pull of a deleted tag")
    return second


def update():
    """Validates the rule, with one secret after another."""
    of_rule = {"ecrRepositoryPrefix": "docker-hub"}
    for secret, valid in ("wrong-a1B2c3", False), ("hub-a1B2c3", True):
        ecr.update_pull_through_cache_rule(**of_rule, credentialArn=SECRET + secret)
        got = ecr.validate_pull_through_cache_rule(**of_rule)
        want = (SECRET + secret, valid, valid)
        equal(want, (got["credentialArn"], got["isValid"], not got.get("failure")), "validate_pull_through_cache_rule")
    fails("update_pull_through_cache_rule", "SecretNotFoundException", NO_SECRET, **of_rule, credentialArn=SECRET + "none")
    say = "Invalid input: Please set either credential arn or role arn to update the credentials"
    fails("update_pull_through_cache_rule", "InvalidParameterException", say, **of_rule)


def destroy(repository):
    of_repo, of_rule = {"repositoryName": REPO}, {"ecrRepositoryPrefix": "docker-hub"}
    full = f"The repository with name '{REPO}' in registry with id '{ACCOUNT}' cannot be deleted because it still contains images"
    fails("delete_repository", "RepositoryNotEmptyException", full, **of_repo)
    does("delete_repository", {"repository": repository}, **of_repo, force=True)
    fails("describe_repositories", "RepositoryNotFoundException", NO_REPO, repositoryNames=[REPO])
    fails("batch_delete_image", "RepositoryNotFoundException", NO_REPO, **of_repo, imageIds=[{"imageTag": "v1"}])
    fails("delete_repository", "RepositoryNotFoundException", NO_REPO, **of_repo, force=True)
    ecr.delete_repository_creation_template(prefix="docker-hub")
    does("describe_repository_creation_templates", {"registryId": ACCOUNT, "repositoryCreationTemplates": []})
    ecr.delete_pull_through_cache_rule(**of_rule)
    fails("describe_pull_through_cache_rules", "PullThroughCacheRuleNotFoundException", NO_RULE, ecrRepositoryPrefixes=["docker-hub"])
    fails("delete_pull_through_cache_rule", "PullThroughCacheRuleNotFoundException", NO_RULE, **of_rule)
    refused("NAME_UNKNOWN")
    asked(0, 0, "the end")


def main():
    prepare()
    login()
    first = pull()
    asked(1, 2, "a cold pull")
    describe(first)
    settings()
    update()
    second = refresh(first)
    destroy(describe(second))


main()
