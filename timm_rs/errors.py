"""The one exception that reaches people as a sentence instead of a traceback."""

import contextlib
import errno
import io
import sys
import textwrap
from collections.abc import Iterator

# What disks and folders say, and no bug does: full, gone, not ours. Not every system has all of them.
STORAGE = {getattr(errno, name) for name in (
    'ENAMETOOLONG', 'ENOSPC', 'EDQUOT', 'EROFS', 'EFBIG', 'EIO', 'ESTALE', 'ENOENT', 'ENOTDIR', 'EACCES', 'EPERM')
    if hasattr(errno, name)}


class UserError(Exception):
    """Something the person at the keyboard can fix: the message names the thing and the remedy.

    `status` is the exit code of a program that ends with it.
    """

    status = 2


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, since a library's message may go on for a page; empty if it says nothing."""
    return (str(error).splitlines() or [''])[0]


def as_user_error(error: BaseException) -> UserError | None:
    """What a disk or a folder refuses, as a message that names the file; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in STORAGE:
        return None
    name = textwrap.shorten(str(error.filename or 'a file'), 500, placeholder=' …')
    if error.errno == errno.ENAMETOOLONG:
        name = f'{name[:100]} …'
    return UserError(f'{name} cannot be used: {error.strerror}; free some space there, see to it that the folder '
                     'exists and is yours to write, or choose another')


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn whatever a library raises while it makes objects of somebody's values into a UserError: `what`: its reason.

    For the inside of a few lines that call a library, and nothing of ours that may have bugs of its own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # there is hardly a kind that is not used for values out of bounds
        reason = str(error) if isinstance(error, (ValueError, RuntimeError, ImportError, OSError)) else (
            f'{type(error).__name__} {error}')
        raise UserError(f'{what}: {reason.strip() or type(error).__name__}') from error


@contextlib.contextmanager
def needing(what: str, package: str) -> Iterator[None]:
    """Turn a package that is not installed into a UserError: `what` needs `package`. For imports alone."""
    try:
        yield
    except ImportError as error:
        raise UserError(f'{what} needs the package {package}: pip install {package}') from error


def escape_unknown_letters() -> None:
    """From now on a letter that the output's encoding has not (… in ASCII) is written as \\u2026, and does not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exit with its status and one line on stderr for a `UserError`, with 130 for Ctrl-C; bugs keep their traceback.

    What a disk or a folder refuses is one, too, wherever it is met first.
    """
    escape_unknown_letters()
    try:
        try:
            yield
        except OSError as error:
            if storage := as_user_error(error):
                raise storage from error
            raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except UserError as error:
        message = str(error)
        if message.startswith('Caught UserError in DataLoader worker'):  # torch sends a whole traceback as the message
            message = message.splitlines()[-1].partition('UserError: ')[2]
        line = ' '.join(message.split())  # a library's message inside may have many lines, and name a thousand keys
        print('error: ' + textwrap.shorten(line, 1000, placeholder=' …'), file=sys.stderr)
        raise SystemExit(error.status) from None
