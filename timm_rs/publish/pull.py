"""A repository from the Hub, every byte checked."""

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from timm_rs.errors import UserError
from timm_rs.files import atomic_folder, atomic_write
from timm_rs.progress import track
from timm_rs.publish.folder import check_output
from timm_rs.publish.network import (
    CHUNK,
    READ_TIMEOUT,
    Cut,
    cache_folder,
    cause_of,
    connect,
    in_plain_words,
    is_temporary,
    patiently,
    symptom_of,
)
from timm_rs.publish.repository import File, check_repo_id, digest, files_of
from timm_rs.recipe.foreign import PULLED


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
    api = connect()
    from huggingface_hub.errors import OfflineModeIsEnabled
    with in_plain_words(repo_id, revision or None, api.token):
        try:
            head, files = patiently(lambda: files_of(api, repo_id, revision or None))
        except OfflineModeIsEnabled:
            snapshot, files = _cached(repo_id, revision or None, 'HF_HUB_OFFLINE is set')
        except Exception as error:
            if not is_temporary(cause := cause_of(error)):
                raise
            print(f'{symptom_of(cause)}: looking in the cache', file=sys.stderr)
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
    repository = cache_folder() / f'models--{repo_id.replace("/", "--")}'
    (repository / 'blobs').mkdir(parents=True, exist_ok=True)
    with _alone(repository, repo_id):
        for file in files:
            _fetch(api, repo_id, head, file, repository / 'blobs' / file.digest)
        snapshot = Path(patiently(lambda: snapshot_download(  # which only makes names for what has been fetched
            repo_id, revision=head, cache_dir=cache_folder(), endpoint=api.endpoint, token=api.token or False)))
        if revision != head:
            reference = repository / 'refs' / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(reference) as written:
                written.write(head)
    return snapshot


@contextlib.contextmanager
def _alone(repository: Path, repo_id: str) -> Iterator[None]:
    """Hold a repository's place in the cache; waits for another process that fetches it, and says so."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock
    lock = repository.parent / '.locks' / repository.name / 'pull.lock'  # the Hub's locks are there, too
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=0.1))
        except Timeout:
            print(f'another process fetches {repo_id}: waiting for it', file=sys.stderr)
            held.enter_context(WeakFileLock(lock))
        yield


def _fetch(api: Any, repo_id: str, head: str, file: File, blob: Path) -> None:
    """Bring one file to its place in the cache, where nothing is that has other content than its name says."""
    if blob.exists():
        if digest(blob, file.digest) == file.digest:
            return
        blob.unlink()
        print(f'{file.path} is damaged in the cache: fetching it anew', file=sys.stderr)
    partial = blob.with_name(blob.name + '.partial')
    for _ in range(2):  # what was there of a broken transfer may have been at fault
        patiently(lambda: _continue(api, repo_id, head, file, partial))
        found = digest(partial, file.digest)
        if found == file.digest:
            os.replace(partial, blob)
            return
        partial.unlink()
    kind = 'SHA-256' if len(file.digest) == 64 else "git's SHA-1"
    raise UserError(f'{repo_id}: {file.path} arrived twice with other content than the Hub announces ({kind} {found} '
                    f'instead of {file.digest}); it was thrown away: try later, or tell the owner')


def _continue(api: Any, repo_id: str, head: str, file: File, partial: Path) -> None:
    """Fetch what `partial` lacks of `file`; what arrives stays, whatever happens. Raises Cut if it is not all."""
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
        raise Cut(f'the transfer of {file.path} broke off after {arrived} of {file.size} bytes')


def _cached(repo_id: str, revision: str | None, why: str) -> tuple[Path, list[File]]:
    """A snapshot that the cache has in full; the names of its blobs are the Hub's digests."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    name = f'{repo_id}@{revision}' if revision else repo_id
    remedy = 'pull it once with network'
    try:
        expected = [file.path for file in get_cached_repo_tree(repo_id, revision=revision, cache_dir=cache_folder())]
    except CachedRepoTreeNotFoundError:
        raise UserError(f'{why}, and {name} was never pulled into the cache ({cache_folder()}): {remedy}') from None
    try:
        snapshot = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache_folder(), local_files_only=True))
        missing = [path for path in expected if not (snapshot / path).is_file()]
    except LocalEntryNotFoundError as error:
        folder = getattr(error, 'snapshot_path', None)
        missing = [path for path in expected if not folder or not (Path(folder) / path).is_file()]
    if missing:
        raise UserError(f'{why}, and the cache ({cache_folder()}) lacks {", ".join(missing[:3])}'
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
            (folder / PULLED).write_text(f'{repo_id}@{snapshot.name}\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'{output}: cannot be written: {error.strerror}') from None
