"""Read from apt's own configuration where Debian's archive is found, and how it is reached."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apt_archive
short_description: Where this machine finds Debian's archive
description:
  - Reads C(sources.list), C(sources.list.d/*.list) and C(sources.list.d/*.sources), with the mirror lists,
    keys, proxies and certificates that they and C(apt.conf) name.
  - Nothing is changed, and nothing is downloaded.
options:
  etc:
    description: Folder of apt's configuration.
    type: path
    default: /etc/apt
  apt_config:
    description: Command that prints apt's merged settings.
    type: path
    default: apt-config
attributes:
  check_mode:
    description: Only reads.
    support: full
  diff_mode:
    description: Nothing to differ.
    support: none
author: Pensieve migration maintainers
"""

EXAMPLES = r"""
- name: Find Debian's archive
  apt_archive:
  register: archive
"""

RETURN = r"""
mirror:
  description: URI of Debian's main archive, without a slash at its end; empty if apt names none.
  type: str
  returned: always
security_mirror:
  description: URI of Debian's security archive; empty if apt names none.
  type: str
  returned: always
keyring:
  description: Path of the key file that C(Signed-By) names for the main archive; empty if none.
  type: str
  returned: always
inline_key:
  description: Armoured public key that C(Signed-By) holds itself; empty if none.
  type: str
  returned: always
http_proxy:
  description: Proxy for http, of C(Acquire::http::Proxy) or the environment.
  type: str
  returned: always
https_proxy:
  description: Proxy for https, of C(Acquire::https::Proxy), C(Acquire::http::Proxy) or the environment.
  type: str
  returned: always
ca_bundle:
  description: File of certificates, of C(Acquire::https::CAInfo), else of the system; or empty.
  type: str
  returned: always
credentials:
  description: Paths of C(auth.conf) files.
  type: list
  elements: str
  returned: always
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

# Names under which Debian serves its releases, and of which a main archive has at least one.
RELEASES = frozenset(
    ("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid")
    + ("buster", "bullseye", "bookworm", "trixie", "forky", "duke")
)
DISABLED = ("no", "false", "0", "off", "disable", "without")

# Where distributions keep the certificates that they trust.
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


@dataclass(frozen=True)
class Source:
    """One archive of apt's configuration; suites are `bookworm`, `bookworm-security` and the like."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_list(text: str) -> Iterator[Source]:
    """Sources of the one-line form: `deb [signed-by=/path] http://… suite component …`."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)$", line)
        if match is None:
            continue
        options = dict(word.split("=", 1) for word in (match["options"] or "").split() if "=" in word)
        yield Source(match["uri"], (match["suite"],), tuple(match["components"].split()), options.get("signed-by", ""))


def parse_deb822(text: str) -> Iterator[Source]:
    """Sources of the deb822 form: stanzas of `Field: value`, Signed-By being a path or a key."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                # A line of one point stands for an empty one, as in the armour of an inline key.
                fields[name] += "\n" + ("" if line.strip() == "." else line.strip())
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in DISABLED
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            yield Source(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by", "").strip(),
            )


def resolve(uri: str) -> str:
    """The http(s) URI behind `uri`, which may name a local list of mirrors; empty if there is none."""
    scheme, _, rest = uri.partition(":")
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if scheme == "mirror+file":
        for line in Path(urlsplit(rest).path).read_text(encoding="utf-8").splitlines():
            candidate = line.split("#", 1)[0].split()
            if candidate and candidate[0].partition(":")[0] in ("http", "https"):
                return candidate[0].rstrip("/")
    return ""


def read_sources(etc: Path) -> list[Source]:
    """All http(s) sources under `etc`, in the order in which apt reads them."""
    found: list[Source] = []
    main = etc / "sources.list"
    files = ([main] if main.is_file() else []) + sorted(
        (
            path
            for path in (etc / "sources.list.d").glob("*")
            if path.suffix in (".list", ".sources") and path.is_file()
        ),
        key=lambda path: path.name,
    )
    for path in files:
        parse = parse_deb822 if path.suffix == ".sources" else parse_list
        for source in parse(path.read_text(encoding="utf-8", errors="replace")):
            uri = resolve(source.uri)
            if uri:
                found.append(Source(uri, source.suites, source.components, source.signed_by))
    return found


def choose(sources: list[Source]) -> tuple[Source | None, Source | None]:
    """Debian's main and security archive among `sources`; third parties use its suites' names too."""
    main = [
        source
        for source in sources
        if "main" in source.components and any(suite in RELEASES for suite in source.suites)
    ]
    security = [
        source
        for source in sources
        if "main" in source.components
        and any(re.fullmatch(r"([a-z]+)(-security|/updates)", suite) for suite in source.suites)
        and any(re.split(r"[-/]", suite)[0] in RELEASES for suite in source.suites)
    ]
    # Debian's own key, or a path that ends in /debian, sets its mirrors apart from others' archives.
    main.sort(key=lambda source: ("debian-archive" not in source.signed_by, not source.uri.endswith("/debian")))
    return (main[0] if main else None), (security[0] if security else None)


def settings(dump: str) -> dict[str, str]:
    """Settings of `apt-config dump`, lower-case names to values."""
    return {match[1].lower(): match[2] for match in re.finditer(r'^(\S+) "(.*)";$', dump, re.MULTILINE)}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "etc": {"type": "path", "default": "/etc/apt"},
            "apt_config": {"type": "path", "default": "apt-config"},
        },
        supports_check_mode=True,
    )
    etc = Path(module.params["etc"])
    try:
        archive, security = choose(read_sources(etc))
    except OSError as error:
        module.fail_json(msg=f"apt's configuration is not readable: {error}")
    program = shutil.which(module.params["apt_config"])
    dump = (
        subprocess.run([program, "dump"], check=True, capture_output=True, text=True, encoding="utf-8").stdout
        if program
        else ""
    )
    conf = settings(dump)
    signed_by = archive.signed_by if archive else ""
    inline = signed_by if "BEGIN PGP" in signed_by else ""
    credentials = [
        path for path in [etc / "auth.conf", *sorted((etc / "auth.conf.d").glob("*.conf"))] if path.is_file()
    ]
    # The order in which apt itself looks.
    http_proxy = conf.get("acquire::http::proxy") or os.environ.get("http_proxy", "")
    https_proxy = conf.get("acquire::https::proxy") or os.environ.get("https_proxy", "") or http_proxy
    ca_bundle = conf.get("acquire::https::cainfo", "") or next((name for name in BUNDLES if Path(name).is_file()), "")
    module.exit_json(
        changed=False,
        mirror=archive.uri if archive else "",
        security_mirror=security.uri if security else "",
        keyring="" if inline or not signed_by.startswith("/") else signed_by.split(",")[0].split()[0],
        inline_key=inline + "\n" if inline else "",
        http_proxy="" if http_proxy.upper() == "DIRECT" else http_proxy,
        https_proxy="" if https_proxy.upper() == "DIRECT" else https_proxy,
        ca_bundle=ca_bundle,
        credentials=[str(path) for path in credentials],
    )


if __name__ == "__main__":
    main()
