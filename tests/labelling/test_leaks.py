import numpy as np
import torch
from PIL import Image

from timm_rs.labelling.leaks import References, as_signs, nearest_other
from timm_rs.labelling.teacher import Answers, fingerprint, looks_of


def unit(rows):
    return torch.nn.functional.normalize(torch.as_tensor(rows, dtype=torch.float32))


def answers(names, content, looks, features, reasons=None):
    return Answers(list(range(len(names))), names, reasons or {}, torch.zeros(len(names), 2), unit(features), None,
                   content, looks)


def random_looks(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-2**63, 2**63, count))


def references(count=200):
    features = np.random.default_rng(1).normal(size=(2, count, 16))
    return References([f'v{n}' for n in range(count)], torch.arange(2 * count).reshape(-1, 2), random_looks(count),
                      *map(unit, features)), features


def test_bits_of_hashes_are_counted():
    looks = torch.tensor([0, 1, -1, 2**62])
    assert ((64 - as_signs(looks) @ as_signs(looks).T) / 2)[0].tolist() == [0, 1, 64, 1]


def test_each_image_is_found_by_its_surest_sign():
    known, features = references()
    assert known.bits == 4
    flip = 1 << 5 | 1 << 40
    other = np.random.default_rng(2).normal(size=16)
    found = known.find(answers(
        ['same', 'alike', 'mirrored', 'stranger', 'bad'], torch.tensor([[6, 7], [-1, 0], [-1, 1], [-1, 2], [0, 1]]),
        torch.stack([known_looks(5), known_looks(5) ^ flip, *random_looks(3, 9)]),
        np.stack([other, other, features[1, 9], other, features[0, 0]]), {4: 'broken'}))
    assert [(leak.place, leak.reference, leak.kind) for leak in found] == [
        (0, 'v3', 'same bytes'), (1, 'v5', 'same looks'), (2, 'v9', 'same features')]
    assert found[1].distance == 2 and found[2].distance < 1e-5


def known_looks(index):
    return random_looks(200)[index]


def test_looks_tell_nothing_where_different_images_look_alike():
    looks = torch.zeros(50, dtype=torch.long)
    known = References([str(n) for n in range(50)], torch.arange(100).reshape(-1, 2), looks,
                       *map(unit, np.random.default_rng(0).normal(size=(2, 50, 8))))
    assert known.bits == -1


def test_the_nearest_other_is_never_the_image_itself():
    points = torch.tensor([0.0, 1.0, 5.0, 5.5])
    assert nearest_other(lambda rows: (points[rows, None] - points).abs(), 4, rows=3).tolist() == [1, 1, 0.5, 0.5]


def test_looks_survive_encoding_again_and_bytes_do_not(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((90, 80), Image.Resampling.BICUBIC)
    image.save(tmp_path / 'x.jpg', quality=80)
    again = np.asarray(Image.open(tmp_path / 'x.jpg'))
    assert bin((looks_of(np.asarray(image)) ^ looks_of(again)) % 2**64).count('1') <= 2
    assert not torch.equal(fingerprint(b'a'), fingerprint(b'b')) and torch.equal(fingerprint(b'a'), fingerprint(b'a'))
