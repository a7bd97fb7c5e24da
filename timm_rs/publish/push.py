"""A folder to the Hub in one commit."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.errors import UserError
from timm_rs.publish.network import LOGIN, connect, in_plain_words, patiently
from timm_rs.publish.repository import CARD, CONFIG, File, check_repo_id, digest, files_of, local_paths, read_json
from timm_rs.training.trained import MEASURED


class Pushed(NamedTuple):
    """What a push did: the page to look at, the paths it sent (none: nothing was to do), and what it left out."""
    url: str
    sent: list[str]
    notes: list[str]


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
    api = connect()
    if not api.token:
        raise UserError(f'publishing needs a token of the Hugging Face Hub: {LOGIN}')
    with in_plain_words(repo_id, revision, api.token):
        patiently(lambda: _find_or_create(api, repo_id, private, revision))
        return patiently(lambda: _commit(
            api, Path(folder), repo_id, revision, create_pr, overwrite_card, overwrite_model))


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
    head, there = files_of(api, repo_id, revision)
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
                _, proposed = files_of(api, repo_id, f'refs/pr/{request.num}')
                if not set(_changed(folder, proposed)) - {CARD} and not _stale(folder, proposed):
                    return Pushed(f'{url}/discussions/{request.num}', [], notes)
    if stale:
        notes.append(f'removed {", ".join(stale)}, which belonged to what was there before')
    operations = [*(CommitOperationAdd(path, folder / path) for path in changed), *map(CommitOperationDelete, stale)]
    commit = api.create_commit(repo_id, operations, commit_message=title, revision=revision, create_pr=create_pr,
                               parent_commit=head)
    return Pushed(commit.pr_url or commit.commit_url, changed, notes)


def _changed(folder: Path, there: list[File]) -> list[str]:
    known = {file.path: file.digest for file in there}
    return [path for path in local_paths(folder)
            if path not in known or known[path] != digest(folder / path, known[path])]


def _stale(folder: Path, there: list[File]) -> list[str]:
    """Measurements on the Hub that are of other weights, since this folder brings none of that name."""
    return [file.path for file in there if file.path in MEASURED and not (folder / file.path).is_file()]


def _refuse_another_model(api: Any, repo_id: str, head: str, there: list[File], folder: Path) -> None:
    if not any(file.path == CONFIG for file in there):
        return
    old, new = read_json(api, repo_id, head, CONFIG), json.loads((folder / CONFIG).read_text())
    variant = old.get('timm_rs')
    ours: dict[str, Any] = variant if isinstance(variant, dict) else {}
    if old.get('architecture') != new['architecture'] or any(
            ours.get(key) != new['timm_rs'].get(key) for key in ('model', 'model_kwargs')):
        holds = ours.get('model') or old.get('architecture') or 'something else'
        raise UserError(f'the name {repo_id} is taken: it holds {holds}{ours.get("model_kwargs") or ""}, not this '
                        f'{new["timm_rs"]["model"]}; choose another one, or replace that model with --overwrite-model')
