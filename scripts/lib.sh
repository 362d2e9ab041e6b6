# Shared by the scripts beside it; source it. Sets `root`, and makes the toolchain: .venv with the pinned requirements.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
cache=$root/.cache
cd "$root"

# Ansible refuses to run in another encoding; Debian's minimal systems set none.
[[ $(locale charmap 2>/dev/null) == UTF-8 ]] || export LC_ALL=C.UTF-8
# Also where the folder is writable by others, from which Ansible reads no settings by itself.
export ANSIBLE_CONFIG=$root/ansible.cfg
export PATH=$venv/bin:$PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*"; }

# refuse FOUND EXPECTED NEXT: stop before anything is changed.
refuse() {
    printf 'Found: %s\nExpected: %s\nUntouched: everything.\nNext: %s\n' "$1" "$2" "$3" >&2
    exit 1
}

# step NAME TEXT COMMAND…: say what is done and how long it took; the output goes to .cache/logs/NAME.log, its end is
# shown when the command fails.
step() {
    local name=$1 text=$2 begin=$SECONDS log=$cache/logs/$1.log
    shift 2
    mkdir -p "$cache/logs"
    say "→ $text …"
    if ! "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        printf 'Found: the step above failed (%s).\nNext: mend the cause and run the same command again.\n' "$log" >&2
        exit 1
    fi
    say "  done in $((SECONDS - begin)) s"
}

# as_root COMMAND…: directly, or with sudo where it asks for no password or somebody is there to type it.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
        sudo "$@"
    else
        return 1
    fi
}

install_venv_module() {
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv
}

# The first Python that can hold Ansible and has the module given; not that of .venv, which may be remade.
find_python() {
    local candidate PATH=${PATH//"$venv/bin:"/}
    for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c "import sys; assert sys.version_info >= (3, 11); import ${1:-sys}" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# toolchain FILE…: .venv holds exactly these requirement files. Once it does, this takes a few milliseconds.
toolchain() {
    local stamp python
    stamp=$({ echo "$venv"; find requirements*.txt roles/*/files -name 'requirements*.txt' -exec cat {} +; } | sha256sum | cut -c1-16)
    [[ -e $venv/.made-$stamp-${*//\//-} ]] && return
    if ! python=$(find_python ensurepip); then
        find_python >/dev/null || refuse "$(python3 --version 2>&1 || true)" \
            "Python 3.11 or newer, which this Ansible needs (Debian 12, Ubuntu 24.04 and newer have it)" \
            "apt-get install python3.11 python3.11-venv, where your system offers it; then the same command again"
        command -v apt-get >/dev/null && step apt "Installing Python's venv module (apt-get, about 20 s)" install_venv_module
        python=$(find_python ensurepip) || refuse "a Python without the modules venv and ensurepip" \
            "both, to make a virtual environment in $venv" "apt-get install python3-venv, then the same command again"
    fi
    # One that was moved, or whose Python is gone, is remade; any other is brought to the pinned versions.
    if ! "$venv/bin/python" -c '' 2>/dev/null || ! grep -qsF "$venv" "$venv/bin/activate"; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    find "$venv" -maxdepth 1 -name '.made-*' ! -name ".made-$stamp-*" -delete
    step "pip" "Installing the toolchain into .venv (${*}; one to two minutes)" \
        "$venv/bin/python" -m pip install --quiet --require-hashes "${@/#/--requirement=}"
    touch "$venv/.made-$stamp-${*//\//-}"
}
