"""The Hugging Face Hub: publish a folder in one commit, fetch a repository and prove every byte of it."""

import contextlib
import email.utils
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from timm_rs.errors import UserError
from timm_rs.files import atomic_folder, atomic_write
from timm_rs.progress import on_terminal, track
from timm_rs.publish.folder import CARD, CONFIG, check_output
from timm_rs.training.trained import MEASURED

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the second attempt, the third, …
LONGEST_WAIT = 300.0  # that a server may ask for; the Hub counts requests in windows of five minutes
TEMPORARY = (408, 429, 500, 502, 503, 504)
CHUNK = 1 << 16  # bytes; a transfer that breaks loses less than this
READ_TIMEOUT = 30.0  # seconds without a byte
INSTALL = 'pip install -e ".[hub]"'
LOGIN = 'log in with `hf auth login`, or set HF_TOKEN'

T = TypeVar('T')


class File(NamedTuple):
    """A file of a repository: path with slashes, size in bytes, and the digest by which the Hub knows it.

    The digest is the SHA-256 of the content (64 hexadecimal digits) for large files, and git's SHA-1 of the blob
    (40 digits) for small ones.
    """
    path: str
    size: int
    digest: str


class Pushed(NamedTuple):
    """What a push did: the page to look at, the paths it sent (none: nothing was to do), and what it left out."""
    url: str
    sent: list[str]
    notes: list[str]


class _Cut(ConnectionError):
    """A transfer that ended before its end."""


def digest(path: Path, like: str) -> str:
    """SHA-256 of a file where `like` has 64 digits, git's SHA-1 of it as a blob where it has 40; hexadecimal."""
    if len(like) == 64:
        value = hashlib.sha256()
    else:
        value = hashlib.sha1(f'blob {path.stat().st_size}\0'.encode(), usedforsecurity=False)
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            value.update(chunk)
    return value.hexdigest()


def local_files(folder: Path) -> list[File]:
    """The files below `folder` in the order of their paths, each with its SHA-256."""
    return [File(path, (folder / path).stat().st_size, digest(folder / path, '0' * 64)) for path in _paths(folder)]


def _paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


# ---- publish ----------------------------------------------------------------------------------------------------

def push(
        folder: Path,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        overwrite_card: bool = False,
        overwrite_model: bool = False,
) -> Pushed:
    """Bring `folder` to the model repository `repo_id` in one commit, or in none when the Hub has it all already.

    Args:
        folder: as `timm_rs.publish.folder.write_folder` leaves it. Files on the Hub that it lacks stay there, save the
            measurements of former weights.
        repo_id: org/name; made if it is not there.
        private: make it private. A repository that is there has to be private already.
        revision: a branch that exists; None: main.
        create_pr: open a pull request instead of committing to main.
        overwrite_card: also where the Hub has another README.md.
        overwrite_model: also where the Hub holds another model.

    Raises:
        UserError: no token, no right to write, a name that is taken, another model there, a missing branch, a Hub
            that cannot be reached or that goes on failing after six attempts.
    """
    check_repo_id(repo_id)
    api = _connect()
    if not api.token:
        raise UserError(f'publishing needs a token of the Hugging Face Hub: {LOGIN}')
    with _in_plain_words(repo_id, revision, api.token):
        _patiently(lambda: _find_or_create(api, repo_id, private, revision))
        return _patiently(lambda: _commit(
            api, Path(folder), repo_id, revision, create_pr, overwrite_card, overwrite_model))


def check_repo_id(repo_id: str) -> None:
    """Raise UserError unless `repo_id` is org/name, in characters and a length that the Hub accepts."""
    word = r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?'
    if not re.fullmatch(f'{word}/{word}', repo_id) or '--' in repo_id or '..' in repo_id or len(repo_id) > 96:
        raise UserError(f"'{repo_id}' is no name on the Hub: write org/name, with letters, digits, and single . _ -")


def _find_or_create(api: Any, repo_id: str, private: bool, revision: str | None) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    try:
        found = api.model_info(repo_id)
    except RepositoryNotFoundError:
        if revision not in (None, 'main'):
            raise UserError(f'{repo_id} does not exist, so it has no branch {revision}: leave out --revision') from None
        try:
            api.create_repo(repo_id, private=private or None)
        except HfHubHTTPError as error:
            if error.response.status_code == 409:  # and yet it could not be seen
                raise UserError(f'the name {repo_id} is taken, by a repository that your token may not see: choose '
                                'another one') from None
            raise
    else:
        if private and not found.private:
            raise UserError(f'{repo_id} is there already, and public: make it private in its settings first, or leave '
                            'out --private')


def _commit(api: Any, folder: Path, repo_id: str, revision: str | None, create_pr: bool, overwrite_card: bool,
            overwrite_model: bool) -> Pushed:
    """One attempt. It looks at the Hub anew, so an attempt after a lost answer finds its work done."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    head, there = _files(api, repo_id, revision)
    if not overwrite_model:
        _refuse_another_model(api, repo_id, head, there, folder)
    changed = _changed(folder, there)
    notes = []
    if CARD in changed and any(file.path == CARD for file in there) and not overwrite_card:
        changed.remove(CARD)
        notes.append(f'{CARD} on the Hub differs and was left as it is; --overwrite-card replaces it')
    url = f'{api.endpoint}/{repo_id}'
    stale = _stale(folder, there)
    if not changed and not stale:
        return Pushed(url, [], notes)
    title = f'Publish {repo_id.rpartition("/")[2]} with timm_rs'
    if create_pr:
        for request in api.get_repo_discussions(
                repo_id, discussion_type='pull_request', discussion_status='open'):
            if request.title == title:
                _, proposed = _files(api, repo_id, f'refs/pr/{request.num}')
                if not set(_changed(folder, proposed)) - {CARD} and not _stale(folder, proposed):
                    return Pushed(f'{url}/discussions/{request.num}', [], notes)
    if stale:
        notes.append(f'removed {", ".join(stale)}, which belonged to what was there before')
    operations = [*(CommitOperationAdd(path, folder / path) for path in changed), *map(CommitOperationDelete, stale)]
    commit = api.create_commit(repo_id, operations, commit_message=title, revision=revision, create_pr=create_pr,
                               parent_commit=head)
    return Pushed(commit.pr_url or commit.commit_url, changed, notes)


def _files(api: Any, repo_id: str, revision: str | None) -> tuple[str, list[File]]:
    """The commit that `revision` names, and its files."""
    head = api.model_info(repo_id, revision=revision).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
    return head, [File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
                  for entry in tree if hasattr(entry, 'blob_id')]  # folders have none


def _changed(folder: Path, there: list[File]) -> list[str]:
    known = {file.path: file.digest for file in there}
    return [path for path in _paths(folder)
            if path not in known or known[path] != digest(folder / path, known[path])]


def _stale(folder: Path, there: list[File]) -> list[str]:
    """Measurements on the Hub that are of other weights, since this folder brings none of that name."""
    return [file.path for file in there if file.path in MEASURED and not (folder / file.path).is_file()]


def _refuse_another_model(api: Any, repo_id: str, head: str, there: list[File], folder: Path) -> None:
    if not any(file.path == CONFIG for file in there):
        return
    old, new = _read_json(api, repo_id, head, CONFIG), json.loads((folder / CONFIG).read_text())
    variant = old.get('timm_rs')
    ours: dict[str, Any] = variant if isinstance(variant, dict) else {}
    if old.get('architecture') != new['architecture'] or any(
            ours.get(key) != new['timm_rs'].get(key) for key in ('model', 'model_kwargs')):
        holds = ours.get('model') or old.get('architecture') or 'something else'
        raise UserError(f'the name {repo_id} is taken: it holds {holds}{ours.get("model_kwargs") or ""}, not this '
                        f'{new["timm_rs"]["model"]}; choose another one, or replace that model with --overwrite-model')


def _read_json(api: Any, repo_id: str, head: str, path: str) -> dict[str, Any]:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    response = get_session().get(
        hf_hub_url(repo_id, path, revision=head, endpoint=api.endpoint),
        headers=build_hf_headers(token=api.token or False), timeout=READ_TIMEOUT)
    hf_raise_for_status(response)
    try:
        content = json.loads(response.content)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


# ---- fetch ------------------------------------------------------------------------------------------------------

def pull(name: str, output: str | os.PathLike[str]) -> tuple[str, list[File]]:
    """Fetch a model repository into the new folder `output`, each file checked against the Hub's digest.

    What has arrived goes through the cache of huggingface_hub, so a transfer that broke goes on where it stopped,
    and timm loads `hf-hub:org/name` from there too. Without network (`HF_HUB_OFFLINE=1`, or nothing answers) the
    cache alone is used.

    Args:
        name: org/name or org/name@revision (branch, tag or commit).
        output: is not there yet, or empty. It appears complete, or not at all.

    Returns:
        commit (40 hexadecimal digits) and the files, in the order of their paths.

    Raises:
        UserError: no such repository or revision, no right to read it, content that is not what the Hub announces,
            no network and an incomplete cache, a full disk.
    """
    repo_id, _, revision = name.partition('@')
    check_repo_id(repo_id)
    check_output(output)
    api = _connect()
    from huggingface_hub.errors import OfflineModeIsEnabled
    with _in_plain_words(repo_id, revision or None, api.token):
        try:
            head, files = _patiently(lambda: _files(api, repo_id, revision or None))
        except OfflineModeIsEnabled:
            snapshot, files = _cached(repo_id, revision or None, 'HF_HUB_OFFLINE is set')
        except Exception as error:
            if not _is_temporary(cause := _cause(error)):
                raise
            print(f'{_symptom(cause)}: looking in the cache', file=sys.stderr)
            snapshot, files = _cached(repo_id, revision or None, f'{api.endpoint} cannot be reached')
        else:
            snapshot = _download(api, repo_id, revision or 'main', head, files)
        _deliver(repo_id, snapshot, files, Path(os.path.abspath(output)))
    return snapshot.name, files


def _download(api: Any, repo_id: str, revision: str, head: str, files: list[File]) -> Path:
    """Bring the commit `head`, with these files, into the cache as what `revision` is; returns its folder there."""
    from huggingface_hub import snapshot_download
    for file in files:
        if PurePosixPath(file.path).is_absolute() or '..' in PurePosixPath(file.path).parts or '\\' in file.path:
            raise UserError(f"{repo_id} has a file named '{file.path}', which would end up outside of the folder")
        if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', file.digest):
            raise UserError(f"{repo_id}: the Hub gives no digest of {file.path} that could be checked")
    repository = _cache() / f'models--{repo_id.replace("/", "--")}'
    (repository / 'blobs').mkdir(parents=True, exist_ok=True)
    for file in files:
        _fetch(api, repo_id, head, file, repository / 'blobs' / file.digest)
    snapshot = Path(_patiently(lambda: snapshot_download(  # which only makes names for what has been fetched
        repo_id, revision=head, cache_dir=_cache(), endpoint=api.endpoint, token=api.token or False)))
    if revision != head:
        reference = repository / 'refs' / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(reference) as written:
            written.write(head)
    return snapshot


def _fetch(api: Any, repo_id: str, head: str, file: File, blob: Path) -> None:
    """Bring one file to its place in the cache, where nothing is that has other content than its name says."""
    if blob.exists():
        if digest(blob, file.digest) == file.digest:
            return
        blob.unlink()
        print(f'{file.path} is damaged in the cache: fetching it anew', file=sys.stderr)
    partial = blob.with_name(blob.name + '.partial')
    for _ in range(2):  # what was there of a broken transfer may have been at fault
        _patiently(lambda: _continue(api, repo_id, head, file, partial))
        found = digest(partial, file.digest)
        if found == file.digest:
            os.replace(partial, blob)
            return
        partial.unlink()
    kind = 'SHA-256' if len(file.digest) == 64 else "git's SHA-1"
    raise UserError(f'{repo_id}: {file.path} arrived twice with other content than the Hub announces ({kind} {found} '
                    f'instead of {file.digest}); it was thrown away: try later, or tell the owner')


def _continue(api: Any, repo_id: str, head: str, file: File, partial: Path) -> None:
    """Fetch what `partial` lacks of `file`; what arrives stays, whatever happens. Raises _Cut if it is not all."""
    import httpx2
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    start = partial.stat().st_size if partial.exists() else 0
    if start > file.size:
        partial.unlink()
        start = 0
    if start == file.size and start:
        return
    headers = build_hf_headers(token=api.token or False) | {'Accept-Encoding': 'identity'}
    if start:
        headers['Range'] = f'bytes={start}-'
    url = hf_hub_url(repo_id, file.path, revision=head, endpoint=api.endpoint)
    with (contextlib.suppress(httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError),
          get_session().stream('GET', url, headers=headers, timeout=READ_TIMEOUT) as response):
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        with open(partial, 'ab') as writer:
            if response.status_code != 206:  # the whole file, whatever was asked for
                writer.truncate(0)
            chunks = response.iter_bytes(CHUNK)
            for chunk in track(chunks, file.path, total=math.ceil((file.size - start) / CHUNK)):
                writer.write(chunk)
                if writer.tell() > file.size:
                    break  # its digest will be wrong
    arrived = partial.stat().st_size if partial.exists() else 0
    if arrived < file.size or not partial.exists():
        raise _Cut(f'the transfer of {file.path} broke off after {arrived} of {file.size} bytes')


def _cached(repo_id: str, revision: str | None, why: str) -> tuple[Path, list[File]]:
    """A snapshot that the cache has in full; the names of its blobs are the Hub's digests."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    name = f'{repo_id}@{revision}' if revision else repo_id
    remedy = 'pull it once with network'
    try:
        expected = [file.path for file in get_cached_repo_tree(repo_id, revision=revision, cache_dir=_cache())]
    except CachedRepoTreeNotFoundError:
        raise UserError(f'{why}, and {name} was never pulled into the cache ({_cache()}): {remedy}') from None
    try:
        snapshot = Path(snapshot_download(repo_id, revision=revision, cache_dir=_cache(), local_files_only=True))
        missing = [path for path in expected if not (snapshot / path).is_file()]
    except LocalEntryNotFoundError as error:
        folder = getattr(error, 'snapshot_path', None)
        missing = [path for path in expected if not folder or not (Path(folder) / path).is_file()]
    if missing:
        raise UserError(f'{why}, and the cache ({_cache()}) lacks {", ".join(missing[:3])}'
                        f'{f" and {len(missing) - 3} more" if len(missing) > 3 else ""} of {name}: {remedy}')
    blobs = {path: (snapshot / path).resolve() for path in expected}
    return snapshot, [File(path, blob.stat().st_size, blob.name) for path, blob in blobs.items()]


def _deliver(repo_id: str, snapshot: Path, files: list[File], output: Path) -> None:
    """Copy the snapshot to `output`, and look at what has been written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(output) as folder:
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(snapshot / file.path, 'rb') as reader, open(target, 'wb') as writer:
                    while chunk := reader.read(CHUNK):
                        writer.write(chunk)
                if digest(target, file.digest) != file.digest:
                    raise UserError(f'{repo_id}: {file.path} is damaged in the cache ({snapshot / file.path}): pull it '
                                    'again with network')
    except OSError as error:
        raise UserError(f'{output}: cannot be written: {error.strerror}') from None


def _cache() -> Path:
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE)


# ---- a network that fails ---------------------------------------------------------------------------------------

def _connect() -> Any:
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


def _patiently(call: Callable[[], T]) -> T:
    """`call()`, again after a while when the Hub is busy or failing or the connection breaks."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            cause = _cause(error)
            if not _is_temporary(cause):
                raise
            asked = _wanted_wait(cause)
            if asked > LONGEST_WAIT:
                raise
            seconds = max(wait, asked)
            print(f'{_symptom(cause)}; trying again in {seconds:.3g} s', file=sys.stderr)
            time.sleep(seconds)
    return call()


def _cause(error: BaseException) -> BaseException:
    """What is behind an error of huggingface_hub: the answer of the Hub, or the failure of the connection."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, (HfHubHTTPError, httpx2.TransportError, _Cut)):
            return chain
        chain = chain.__cause__
    return error


def _is_temporary(cause: BaseException) -> bool:
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


def _symptom(cause: BaseException) -> str:
    response = getattr(cause, 'response', None)
    if response is not None:
        return f'the Hub answers {response.status_code} ({response.reason_phrase})'
    if isinstance(cause, json.JSONDecodeError):
        return 'what answers does not speak as the Hub does'
    return str(cause) if isinstance(cause, _Cut) else f'the connection to the Hub failed ({type(cause).__name__})'


@contextlib.contextmanager
def _in_plain_words(repo_id: str, revision: str | None, token: str | None) -> Iterator[None]:
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
        sentence = _explain(_cause(error), repo_id, revision, token)
    except Exception as error:
        cause = _cause(error)
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
            return f'{cause.filename or _cache()}: {cause.strerror or cause}'
        return f'{_symptom(cause)}, again and again: check the network and HF_ENDPOINT, and try later' + (
            '; what has arrived is kept' if isinstance(cause, _Cut) else
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
        return f'{_symptom(cause)}{wait}: try later'
    return f'the Hub refuses: {status} {response.reason_phrase}{said}'
