"""edgedi-keygen: make a key pair, show its public half, or remember a worker's public key.

What is to be pasted or piped (the line for a worker's --authorized-keys file) goes to standard output, all else to
standard error.
"""

from __future__ import annotations

import argparse
import getpass
import shlex
import socket
import sys
from collections.abc import Sequence

from edgedi.errors import SecurityError
from edgedi.runtime.links.keys import (
    KNOWN_WORKERS,
    KeyPair,
    add_known_worker,
    fingerprint,
    generate_keypair,
    load_keypair,
    parse_worker_address,
    save_keypair,
)

DEFAULT_KEY = "~/.edgedi/me.key"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="edgedi-keygen", description="Make and look after the keys of edgedi.")
    parser.add_argument("--out", metavar="FILE", default=DEFAULT_KEY, help="write a new key pair here (%(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a key that is there already")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", metavar="FILE", help="print the public key of a key file; make none")
    instead.add_argument(
        "--trust",
        metavar="HOST:PORT#KEY",
        help=f"remember the public key that a worker printed at its start, in {KNOWN_WORKERS}; make none",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 with the reason on standard error."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.show is not None:
            _print_public(load_keypair(arguments.show))
        elif arguments.trust is not None:
            _trust(arguments.trust, replace=arguments.force)
        else:
            _generate(arguments.out, overwrite=arguments.force)
    except (SecurityError, ValueError) as error:
        _say(f"edgedi-keygen: {error}")
        return 2
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _generate(path: str, *, overwrite: bool) -> None:
    keypair = generate_keypair()
    try:
        target = save_keypair(path, keypair, overwrite=overwrite)
    except FileExistsError as error:
        show = shlex.join(["edgedi-keygen", "--show", path])
        raise SecurityError(f"{error}; see its public key with {show}, or replace it with --force") from None
    _say(f"wrote {target}; keep it to yourself. Put this line into every worker's --authorized-keys file:")
    _print_public(keypair)


def _print_public(keypair: KeyPair) -> None:
    print(f"{keypair.public} {_owner()}")
    _say(f"fingerprint {fingerprint(keypair.public)}")


def _owner() -> str:
    """Who and where, the comment by which a worker's owner tells keys apart."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "user"
    return f"{user}@{socket.gethostname()}"


def _trust(text: str, *, replace: bool) -> None:
    address = parse_worker_address(text)
    is_new = add_known_worker(address, replace=replace)
    _say(f"{address} {'is now' if is_new else 'was already'} known by {fingerprint(address.public_key or '')}")


if __name__ == "__main__":
    sys.exit(main())
