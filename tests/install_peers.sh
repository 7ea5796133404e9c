#!/bin/sh
# Installs the real peers that the tests talk to (Debian packages), if they are missing and we may.
set -eu
missing=""
command -v storescp >/dev/null || missing="$missing dcmtk"
command -v Orthanc >/dev/null || test -x /usr/sbin/Orthanc || missing="$missing orthanc"
command -v chromium >/dev/null || missing="$missing chromium"
command -v ssh-keygen >/dev/null || missing="$missing openssh-client"
command -v xmllint >/dev/null || missing="$missing libxml2-utils"
command -v openssl >/dev/null || missing="$missing openssl"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo="sudo -n"; else
  echo "The tests need the Debian packages$missing. Install them: apt-get install$missing" >&2; exit 1; fi
echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
{ $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null; } || {
  echo "The tests need the Debian packages$missing and they could not be installed. As root: apt-get install$missing" >&2; exit 1; }
case "$missing" in *orthanc*) ;; *) exit 0 ;; esac # a service that was here before is left alone
command -v systemctl >/dev/null && $sudo systemctl stop orthanc 2>/dev/null || true
[ -x /etc/init.d/orthanc ] && $sudo /etc/init.d/orthanc stop >/dev/null 2>&1 || true
