"""Jobs of Ray are those of the pool: what differs is who starts them, and how they hear of a stop."""

import importlib.util
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from timm_rs.errors import UserError
from timm_rs.scaling.jobs import Job, run_jobs
from timm_rs.scaling.ray_engine import STOP, RayPool

has_ray = importlib.util.find_spec('ray') is not None
COUNT = '''
import signal, sys, time
from pathlib import Path
count, wait = Path(sys.argv[1]), float(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved'))
while (number := int(count.read_text()) if count.exists() else 0) < 3:
    count.write_text(str(number + 1))
    time.sleep(wait)
    if wait < 0.1:
        sys.exit('killed')
'''


def place(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


def is_done(path: Path) -> bool:
    return place(path) == 3


@pytest.fixture
def job(tmp_path):
    (tmp_path / 'count.py').write_text(COUNT)

    def make(name, wait):
        path = tmp_path / name
        return Job(name, [str(tmp_path / 'count.py'), str(path), str(wait)], tmp_path / f'{name}.log', tmp_path,
                   partial(is_done, path), partial(place, path))
    return make


def test_where_there_is_no_ray_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserError, match=r"needs the package ray: pip install 'timm_rs\[ray\]'"):
        RayPool(tmp_path, None, None)


@pytest.mark.skipif(not has_ray, reason="pip install 'timm_rs[ray]' for the engine ray")
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::ResourceWarning', 'ignore::DeprecationWarning',
                            'ignore::pytest.PytestUnraisableExceptionWarning')
def test_ray_retries_what_gets_further_and_stops_cleanly(job, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', ':'.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    (tmp_path / STOP).write_bytes(b'.')  # that of a driver before
    short, long = job('short', 0.01), job('long', 100)
    with closing(RayPool(tmp_path, 2, None)) as engine:
        def stop():
            while not (tmp_path / 'long').exists() or place(tmp_path / 'short') < 3:
                time.sleep(0.1)
            time.sleep(1)
            engine.stop()
        thread = threading.Thread(target=stop)
        thread.start()
        outcomes = {outcome.job.name: outcome.state for outcome in run_jobs([short, long], engine)}
        thread.join()
    assert outcomes == dict(short='done', long='stopped')
    assert short.log.read_text().split() == 3 * ['killed'] and long.log.read_text().strip() == 'saved'
    assert not (tmp_path / STOP).exists()
