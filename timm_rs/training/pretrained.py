"""Published weights: fetched by timm from the cache or the Hub, else a sentence at once; whose a run began with."""

import socket
import urllib.parse
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants, try_to_load_from_cache

from timm_rs.errors import UserError
from timm_rs.files import read_json
from timm_rs.recipe.foreign import pulled_from

PATIENCE = 5.0  # seconds until the Hub is out of reach; its own library tries for more than a minute
FILES = 'model.safetensors', 'pytorch_model.bin'


def base_model(model: str, pretrained: bool, file: str | None) -> str:
    """The repository of the Hub, org/name, whose weights a run begins with; empty if there is none.

    That is where `file` was fetched from, if it begins with one, else that of the published weights of `model`.
    """
    if file:
        return pulled_from(file)
    if not pretrained:
        return ''
    folder = model.removeprefix('local-dir:')
    return _repository(model) if folder == model else pulled_from(Path(folder, 'config.json'))


def check_hub(model: str) -> None:
    """Raise UserError where timm would fetch the weights of `model` from a Hub that cannot be reached."""
    if not (repository := _repository(model)) or _is_cached(repository):
        return
    if constants.HF_HUB_OFFLINE:
        reason = 'HF_HUB_OFFLINE forbids to fetch them'
    elif problem := _unreachable(constants.ENDPOINT):
        reason = f'{constants.ENDPOINT} cannot be reached ({problem})'
    else:
        return
    raise UserError(
        f'the weights of {model} are not in the cache {constants.HF_HUB_CACHE}, and {reason}: give train.py '
        'a file of them (--pretrained-path FILE), or copy the cache of a machine that has fetched them (its place is '
        'HF_HOME, and HF_HUB_OFFLINE=1 uses nothing else)')


def problem_type(model: str) -> str:
    """transformers' word for what `model` does, from the config.json of its folder, or of the Hub; empty without one.

    Of a repository of the Hub, by hf-hub:, timm has just read it.
    """
    scheme, _, place = model.partition(':')
    repository, _, revision = place.partition('@')
    path = Path(place, 'config.json') if scheme == 'local-dir' else try_to_load_from_cache(
        repository, 'config.json', revision=revision or None)
    return str(read_json(Path(path)).get('problem_type', '')) if isinstance(path, (str, Path)) else ''


def _repository(model: str) -> str:
    if model.startswith('hf-hub:'):
        return model.removeprefix('hf-hub:').partition('@')[0]
    cfg = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return (cfg and cfg.hf_hub_id) or ''


def _is_cached(repository: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in FILES)


def _unreachable(endpoint: str) -> str:
    """Why nothing answers at `endpoint`; empty where something does, and behind a proxy, which alone can tell."""
    url = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies().get(url.scheme):
        return ''
    try:
        socket.create_connection((url.hostname or '', url.port or socket.getservbyname(url.scheme)), PATIENCE).close()
    except OSError as error:
        return error.strerror or str(error)
    return ''
