#!/usr/bin/env bash
# Builds images of the Dockerfile where there is no container engine and no image registry, runs them, and prints
# their sizes:
#
#   deploy/prove-dockerfile.sh BUNDLE PHOTO [TARGET...]     # runtime and service; train is only built
#
# buildah builds, on a Debian that debootstrap makes in place of python:3.13-slim-trixie; what an engine does when it
# runs an image is done by unshare and chroot: namespaces of their own, all files of the image read-only, /tmp in
# memory, no network but the loopback, the image's user, no capabilities and no new privileges.
#
# Needs root, buildah, debootstrap, iproute2, python3 and about 4 GB in $TMPDIR (train: 40 GB); leaves nothing behind.
#   CA=FILE          certificates for pip, where the registry is reached through a proxy with its own
#   MIRROR=URL       of Debian;  SUITE=trixie
#   ROOTFS=FOLDER    what debootstrap made before; it is copied
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
fail() {
    echo "$1" >&2
    exit 1
}
[ "$(id -u)" -eq 0 ] || fail "unshare and chroot need root."
for tool in buildah debootstrap ip python3; do
    command -v "$tool" >/dev/null || fail "There is no '$tool'; install it with apt-get."
done
bundle=$(realpath -e "$1")
photo=$(realpath -e "$2")
shift 2
[ $# -gt 0 ] || set -- runtime service
repository=$(realpath "$(dirname "$0")/..")
suite=${SUITE:-trixie}

work=$(mktemp -d)
export TMPDIR=$work BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF=$work/storage.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/run" >"$work/storage.conf"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
trap 'buildah rm --all >/dev/null 2>&1 || true; rm -rf --one-file-system "$work"' EXIT

echo "== base image: Debian $suite"
if [ -n "${ROOTFS:-}" ]; then
    cp -a "$ROOTFS" "$work/root"
else
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/root" \
        "${MIRROR:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || fail "debootstrap: $(tail -5 "$work/log")"
fi
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,man,locale}
ln -sf python3 "$work/root/usr/bin/python"
base=localhost/edgetl-base:$suite
empty=$(buildah from scratch)
buildah add --quiet "$empty" "$work/root" / >/dev/null
buildah commit --quiet --format docker --signature-policy "$work/policy.json" "$empty" "$base" >/dev/null
buildah rm "$empty" >/dev/null
rm -rf "$work/root"

extra=()
if [ -n "${CA:-}" ]; then
    printf '[global]\ncert = /etc/proxy-ca.crt\n' >"$work/pip.conf"
    extra=(--volume "$CA:/etc/proxy-ca.crt:ro" --volume "$work/pip.conf:/etc/pip.conf:ro")
fi

# unpack IMAGE: its files below $files, its configuration as shell variables user, entrypoint, command, health, env.
unpack() {
    local container
    container=$(buildah from --signature-policy "$work/policy.json" "localhost/edgetl-$1")
    files=$(buildah mount "$container")
    mkdir -p "$files"/{bundle,photos,proc,tmp}
    buildah inspect --type image "localhost/edgetl-$1" >"$work/image.json"
    eval "$(python3 - "$work/image.json" <<'PYTHON'
import json, shlex, sys
config = json.load(open(sys.argv[1]))["Docker"]["config"]
print("user=" + shlex.quote(config["User"]))
print("env=(" + shlex.join(config["Env"]) + ")")
print("entrypoint=(" + shlex.join(config["Entrypoint"]) + ")")
print("command=(" + shlex.join(config["Cmd"] or []) + ")")
print("health=(" + shlex.join(config["Healthcheck"]["Test"][1:]) + ")")
PYTHON
)"
}

# inside SCRIPT: runs it as root in namespaces of its own; "${image[@]}" before a command runs that as the image would.
inside() {
    export files user bundle photo
    declare -p env entrypoint command health >"$work/config"
    unshare --mount --pid --net --ipc --uts --fork --kill-child bash -euo pipefail -c '
        source "$1"
        ip link set lo up
        mount --make-rprivate /
        mount --bind "$files" "$files"
        mount -o remount,bind,ro "$files"
        mount -t tmpfs -o size=64m,mode=1777,noexec,nosuid,nodev tmpfs "$files/tmp"
        mount -t proc proc "$files/proc"
        mount --bind "$bundle" "$files/bundle" && mount -o remount,bind,ro "$files/bundle"
        mount --bind "$(dirname "$photo")" "$files/photos" && mount -o remount,bind,ro "$files/photos"
        [ -e "$files/dev/null" ] || mount --bind /dev/null "$files/dev/null"
        image=(setpriv --no-new-privs chroot --userspec="$user" --groups= "$files" env -i "${env[@]}")
        eval "$2"
    ' bash "$work/config" "$1"
}

try_runtime() {
    unpack runtime
    inside '
        shown=/photos/$(basename "$photo")
        echo "-- entrypoint, then predict as user $user:"
        "${image[@]}" "${entrypoint[@]}" predict /bundle "$shown"
        echo "-- serve --stdin:"
        echo "{\"id\": 1, \"path\": \"$shown\"}" | "${image[@]}" "${entrypoint[@]}" serve /bundle --stdin 2>/dev/null
        echo "-- health check: ${health[*]}"
        "${image[@]}" "${health[@]}" >/dev/null
        echo healthy
        echo "-- nothing can be written, and there is no pip:"
        if "${image[@]}" touch /opt/edgetl/x 2>&1; then exit 1; fi
        if "${image[@]}" python -m pip --version 2>&1; then exit 1; fi
    '
}

try_service() {
    unpack service
    inside '
        "${image[@]}" "${entrypoint[@]}" "${command[@]}" >"$files/tmp/log" 2>&1 &
        server=$!
        for _ in $(seq 60); do
            if "${image[@]}" "${health[@]}" 2>/dev/null; then break; fi
            sleep 0.5
        done
        "${image[@]}" "${health[@]}"
        echo "-- healthy, as user $user"
        "${image[@]}" python -c "
import sys, urllib.request
print(urllib.request.urlopen(\"http://127.0.0.1:8000/predict\", open(sys.argv[1], \"rb\").read()).read().decode())
" "/photos/$(basename "$photo")"
        kill -TERM $server
        wait $server || [ $? -eq 143 ]  # uvicorn ends by the signal that it was told to end by
        grep "Finished server process" "$files/tmp/log"
    '
}

for target in "$@"; do
    echo "== $target: build"
    buildah bud --quiet --format docker --layers --signature-policy "$work/policy.json" "${extra[@]}" \
        --build-arg "PYTHON=$base" --target "$target" --tag "edgetl-$target" "$repository" >"$work/log" 2>&1 ||
        fail "$(tail -20 "$work/log")"
    [ "$target" = train ] || { echo "== $target: run" && "try_$target"; }
done
echo "== sizes, unpacked"
buildah images --format '{{.Size}}  {{.Name}}' | grep localhost/edgetl
