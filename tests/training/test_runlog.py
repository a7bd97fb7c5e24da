import csv
import fcntl
import math
import os
import pty
import struct
import termios
import time

import pytest
from forks import ForkedPython

from timm_rs.errors import UserError
from timm_rs.training.runlog import DataHint, Progress, Summary, since_best

BAR = '''
import time
from timm_rs.training.runlog import Progress
from timm_rs.progress import track
progress = Progress(updates_per_epoch=3, first_update=0, num_epochs=2, enabled=True)
for epoch in range(2):
    for step, _ in enumerate(progress.waiting_for([0, 0, 0]), start=1):
        time.sleep(0.05)
        progress.report(epoch * 3 + step, 0.5, 0.1, 64)
    for _ in track(range(3), 'evaluate'):
        time.sleep(0.05)
    progress.say(f'epoch {epoch + 1} done')
progress.close()
'''


def test_plain_lines_tell_loss_rate_images_waiting_and_eta(capsys):
    progress = Progress(updates_per_epoch=2, first_update=2, num_epochs=3, enabled=True)
    for update in (3, 4, 5):
        list(progress.waiting_for([None]))
        progress.report(update, 0.25, 0.1, 64)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith('epoch 2/3  update 1/2  loss 0.2500  lr 1.000e-01  ')
    assert lines[2].startswith('epoch 3/3  update 1/2')
    for part in ('img/s', 'waiting for data', '%', 'ETA 0:00:0'):
        assert part in lines[1]


def test_share_of_waiting_is_measured(capsys):
    def slow():
        time.sleep(0.3)
        yield None

    progress = Progress(updates_per_epoch=1, first_update=0, num_epochs=1, enabled=True)
    for _ in progress.waiting_for(slow()):
        time.sleep(0.1)
    progress.report(1, 0.25, 0.1, 64)
    share = int(capsys.readouterr().out.partition('waiting for data ')[2].partition(' %')[0])
    assert 60 <= share <= 85


def test_waiting_for_data_gives_one_hint(capsys):
    hint = DataHint()
    assert hint.after(99, seconds=10, waited=9) is None  # too early to say
    assert 'waits for data 85 % of the time' in hint.after(1, seconds=10, waited=8)
    assert hint.after(500, seconds=10, waited=9) is None  # said already
    assert DataHint().after(100, seconds=10, waited=1.9) is None

    progress = Progress(updates_per_epoch=100, first_update=0, num_epochs=1, enabled=True)
    for update in (50, 100):
        progress.last_report, progress.waited = time.perf_counter() - 10, 5.0
        progress.report(update, 0.25, 0.1, 64)
    out = capsys.readouterr().out
    assert out.count('training waits for data 50 %') == 1 and 'tools/pack_dataset.py' in out


def test_other_processes_stay_silent(capsys):
    progress = Progress(updates_per_epoch=1, first_update=0, num_epochs=1, enabled=False)
    progress.report(1, 0.25, 0.1, 64)
    progress.say('hello')
    assert capsys.readouterr() == ('', '')


def test_terminal_gets_a_bar_and_a_pipe_gets_lines(capsys):
    exec(BAR, {})
    piped = capsys.readouterr()
    assert piped.out.count('update') == 6 and '\r' not in piped.out + piped.err
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 160, 0, 0))
    with ForkedPython([BAR], stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b''
        while True:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # the terminal is gone with its last user
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait() == 0
    os.close(master)
    text = shown.decode()
    assert 'loss 0.5000' in text and '6/6' in text and '\r' in text and 'epoch 2 done' in text and 'evaluate' in text


@pytest.mark.parametrize(('scores', 'sign', 'since'), [
    ([], 1, 0), ([5], 1, 0), ([5, 4, 5], 1, 2), ([4, 5, 4, 3], 1, 2), ([4, 5, 4, 3], -1, 0), (['4', '5', ''], 1, 0),
    ([math.nan, math.nan], 1, 2), ([math.nan, 3, math.nan], -1, 1), ([1, math.inf, 2], 1, 0)])
def test_rows_since_the_best_are_counted_from_the_first_of_equal_ones(scores, sign, since):
    assert since_best([{'epoch': 0, 'eval_top1': score} for score in scores], 'eval_top1', sign) == since


def test_summary_drops_epochs_that_are_trained_again(tmp_path):
    path = tmp_path / 'summary.csv'
    summary = Summary(path)
    for epoch in range(3):
        summary.rows.append({'epoch': epoch, 'train_loss': 1.5, 'lr': 0.1})
    summary.write()
    resumed = Summary(path, first_epoch=2)
    resumed.rows.append({'epoch': 2, 'train_loss': 0.5, 'lr': 0.1})
    resumed.write()
    with open(path, newline='') as file:
        assert [(row['epoch'], row['train_loss']) for row in csv.DictReader(file)] == [
            ('0', '1.5'), ('1', '1.5'), ('2', '0.5')]


@pytest.mark.parametrize('content', [b'', b'x,y\n1,2\n', b'epoch\nmany\n', b'epoch\n0,1\n', b'epoch\n\xff\n'])
def test_a_damaged_summary_is_one_line(tmp_path, content):
    path = tmp_path / 'summary.csv'
    path.write_bytes(content)
    if not content:  # nothing in it is nothing lost
        assert Summary(path, first_epoch=1).rows == []
        return
    with pytest.raises(UserError, match=r'summary.csv is damaged .*mend it, or move it away'):
        Summary(path, first_epoch=1)
