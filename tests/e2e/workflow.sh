#!/bin/sh
# The whole workflow of the API document with curl: log in, index, upload, ask for the status.
#
#   BASE_URL=http://localhost:8080 PASSWORD=... tests/e2e/workflow.sh photo.jpg
#
# The user has to exist (`python -m immich_bridge user create --username admin`). Prints every
# answer; ends with the first one that is an error, or that is not what the document says.
set -eu

BASE_URL=${BASE_URL:-http://localhost:8080}
USERNAME=${USERNAME:-admin}
PASSWORD=${PASSWORD:?the password of $USERNAME}
DATE=${DATE:-2025-12-10}
LOCAL_ID=${LOCAL_ID:-IMG_1234}
PYTHON=${PYTHON:-python3}
PHOTO=${1:?usage: workflow.sh photo.jpg}

# What jq would do: the JSON on standard input, and a Python expression over it named `it`.
json() {
	"$PYTHON" -c "import json, sys; it = json.load(sys.stdin); print($1)"
}

# $1 is what should be, $2 what is.
expect() {
	if [ "$1" != "$2" ]; then
		echo "expected $1, got $2" >&2
		exit 1
	fi
}

# --fail-with-body: an error status ends curl, and with it this script, and still is shown.
request() {
	curl --silent --show-error --fail-with-body --max-time 30 "$@"
}

echo "1. Login" >&2
RESPONSE=$(request -X POST "$BASE_URL/login" \
	-H "Content-Type: application/json" \
	-d "{\"username\":\"$USERNAME\",\"password\":\"$PASSWORD\"}")
TOKEN=$(printf '%s' "$RESPONSE" | json 'it["token"]')
printf '%s' "$RESPONSE" | json '"token until " + it["expires_at"]'

echo "2. Index photos" >&2
RESPONSE=$(request -X POST "$BASE_URL/photos/index" \
	-H "Authorization: Bearer $TOKEN" \
	-H "Content-Type: application/json" \
	-d "{
    \"date\": \"$DATE\",
    \"photos\": [
      {
        \"local_id\": \"$LOCAL_ID\",
        \"creation_time\": \"${DATE}T10:00:00Z\",
        \"file_extension\": \"jpg\",
        \"file_type\": \"image/jpeg\"
      }
    ]
  }")
echo "$RESPONSE"
expect success "$(printf '%s' "$RESPONSE" | json 'it["status"]')"
expect "$LOCAL_ID" "$(printf '%s' "$RESPONSE" | json 'it["assigned_files"][0]["local_id"]')"
FILENAME=$(printf '%s' "$RESPONSE" | json 'it["assigned_files"][0]["filename"]')

echo "3. Upload file" >&2
RESPONSE=$(request -X POST "$BASE_URL/photos/upload" \
	-H "Authorization: Bearer $TOKEN" \
	-F "local_id=$LOCAL_ID" \
	-F "file_type=image/jpeg" \
	-F "file=@$PHOTO")
echo "$RESPONSE"
expect success "$(printf '%s' "$RESPONSE" | json 'it["status"]')"
expect "$FILENAME" "$(printf '%s' "$RESPONSE" | json 'it["filename"]')"

echo "4. Verify" >&2
RESPONSE=$(request "$BASE_URL/status" \
	-H "Authorization: Bearer $TOKEN")
echo "$RESPONSE"
expect "online $USERNAME" "$(printf '%s' "$RESPONSE" | json 'it["status"] + " " + it["username"]')"
