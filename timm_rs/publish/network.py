"""A Hub that is busy, failing or says no."""

import contextlib
import email.utils
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from timm_rs.errors import UserError
from timm_rs.progress import on_terminal

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the second attempt, the third, …
LONGEST_WAIT = 300.0  # that a server may ask for; the Hub counts requests in windows of five minutes
TEMPORARY = (408, 429, 500, 502, 503, 504)
CHUNK = 1 << 16  # bytes; a transfer that breaks loses less than this
READ_TIMEOUT = 30.0  # seconds without a byte
INSTALL = 'pip install -e ".[hub]"'
LOGIN = 'log in with `hf auth login`, or set HF_TOKEN'

T = TypeVar('T')


class Cut(ConnectionError):
    """A transfer that ended before its end."""


def cache_folder() -> Path:
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE)


def connect() -> Any:
    """HfApi for HF_ENDPOINT with the token of this machine, if any; its own chatter switched off."""
    try:
        import huggingface_hub
        from huggingface_hub import get_cached_repo_tree  # noqa: F401
    except ImportError:
        raise UserError(f'the Hub needs a newer huggingface_hub: {INSTALL}') from None
    huggingface_hub.logging.set_verbosity_error()  # its warnings have addresses with signatures in them
    if not on_terminal():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub.HfApi(token=huggingface_hub.get_token())


def patiently(call: Callable[[], T]) -> T:
    """`call()`, again after a while when the Hub is busy or failing or the connection breaks."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            cause = cause_of(error)
            if not is_temporary(cause):
                raise
            asked = _wanted_wait(cause)
            if asked > LONGEST_WAIT:
                raise
            seconds = max(wait, asked)
            print(f'{symptom_of(cause)}; trying again in {seconds:.3g} s', file=sys.stderr)
            time.sleep(seconds)
    return call()


def cause_of(error: BaseException) -> BaseException:
    """What is behind an error of huggingface_hub: the answer of the Hub, or the failure of the connection."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, (HfHubHTTPError, httpx2.TransportError, Cut)):
            return chain
        chain = chain.__cause__
    return error


def is_temporary(cause: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in TEMPORARY
    return isinstance(cause, (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, ConnectionError,
                              json.JSONDecodeError))  # huggingface_hub reads some error pages as if they were answers


def _wanted_wait(cause: BaseException) -> float:
    """Seconds that the Hub asks to wait: Retry-After (a number, or a date), or its own rate limit header."""
    headers = getattr(getattr(cause, 'response', None), 'headers', {})
    value = headers.get('Retry-After', '')
    if re.fullmatch(r'\d+(\.\d+)?', value):
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    reset = re.search(r'r=0\s*;\s*t=(\d+)', headers.get('ratelimit', ''))
    return float(reset[1]) if reset else 0.0


def symptom_of(cause: BaseException) -> str:
    response = getattr(cause, 'response', None)
    if response is not None:
        return f'the Hub answers {response.status_code} ({response.reason_phrase})'
    if isinstance(cause, json.JSONDecodeError):
        return 'what answers does not speak as the Hub does'
    return str(cause) if isinstance(cause, Cut) else f'the connection to the Hub failed ({type(cause).__name__})'


@contextlib.contextmanager
def in_plain_words(repo_id: str, revision: str | None, token: str | None) -> Iterator[None]:
    """Turn what the Hub and the network can do to us into one sentence without the token in it."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    sentence = ''
    try:
        yield
    except OfflineModeIsEnabled:
        sentence = 'HF_HUB_OFFLINE is set: unset it to reach the Hub'
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        sentence = _explain(cause_of(error), repo_id, revision, token)
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, (HfHubHTTPError, httpx2.TransportError)):
            sentence = _explain(cause, repo_id, revision, token)
        elif isinstance(cause, RuntimeError):  # hf_xet, which carries large files where the Hub has it
            sentence = f'the transfer failed ({re.sub(r"https?://[^ ]+", "…", str(cause))}): try again'
        elif isinstance(cause, (ValueError, KeyError)):  # no JSON, or other JSON: a proxy's page, for instance
            sentence = f'what answers does not speak as the Hub does ({cause}): check HF_ENDPOINT'
        else:
            raise
    if sentence:
        raise UserError(sentence.replace(token, '…') if token else sentence)


def _explain(cause: BaseException, repo_id: str, revision: str | None, token: str | None) -> str:
    import httpx2
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    who = 'your token may not' if token else f'you are not logged in ({LOGIN}), which it may need to'
    if isinstance(cause, httpx2.LocalProtocolError):
        return 'the token has characters that no token has: copy it again from the settings of your account'
    if not isinstance(cause, HfHubHTTPError):
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
            return f'{cause.filename or cache_folder()}: {cause.strerror or cause}'
        return f'{symptom_of(cause)}, again and again: check the network and HF_ENDPOINT, and try later' + (
            '; what has arrived is kept' if isinstance(cause, Cut) else
            '; a Hub without Xet wants HF_HUB_DISABLE_XET=1' if isinstance(cause, ConnectionError) else '')
    response = cause.response
    status = response.status_code
    said = response.headers.get('X-Error-Message', '')  # not the body: it may be a proxy's page
    said = f' ({said})' if said else ''
    if isinstance(cause, GatedRepoError):
        return (f'{repo_id} is gated: ask for access on its page, with the account of your token'
                + ('' if token else f'; and {LOGIN}'))
    if isinstance(cause, DisabledRepoError):
        return f'{repo_id} has been disabled by the Hub'
    if isinstance(cause, RevisionNotFoundError):
        return f'{repo_id} has no revision {revision or "main"}: look at its branches and tags on the Hub'
    if isinstance(cause, RemoteEntryNotFoundError):
        return f'{repo_id} lacks a file that it lists: it may have changed just now; try again'
    if isinstance(cause, RepositoryNotFoundError) or (status == 404):
        return f'{repo_id} does not exist, or is private, and {who} see it'
    if status == 401:
        return f'the Hub does not accept the token{said}; it may have expired: {LOGIN}' if token else LOGIN
    if status == 403:
        return f'your token may not write to {repo_id}{said}: it needs the role "write", and you the right to do so'
    if status in (409, 412):
        return f'{repo_id} changed while this was being sent{said}: try again'
    if status in TEMPORARY:
        asked = _wanted_wait(cause)
        wait = f' and wants you to come back in {asked:.0f} s' if asked > LONGEST_WAIT else ', again and again'
        return f'{symptom_of(cause)}{wait}: try later'
    return f'the Hub refuses: {status} {response.reason_phrase}{said}'
