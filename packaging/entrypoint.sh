#!/bin/sh
# `docker run fedvad serve ...` and `docker run fedvad fedvad serve ...` mean the same.
[ "$1" = fedvad ] && shift
exec fedvad "$@"
