"""Predictions: the classes that the model gives an image, by name; bad images are named and survived."""
import dataclasses
import http.server
import io
import threading

import numpy as np
import pytest
import timm
import torch
from conftest import write_images
from PIL import Image

import timm_rs.inference.predict
from timm_rs.data.class_names import FILE, in_order, names_of_timm_model, read_class_names, write_class_names
from timm_rs.device.torch_device import Device
from timm_rs.errors import UserError
from timm_rs.inference.predict import download, find_images, load_images, predict
from timm_rs.inference.source import Source, open_model
from timm_rs.publish.folder import write_folder
from timm_rs.publish.repository import CONFIG
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import build_model
from timm_rs.training.trained import read_run


class BrightestChannel(torch.nn.Module):
    """Knows red, green and blue images."""

    num_classes = 3

    def forward(self, images):
        return images.mean((2, 3)) * 10


@pytest.fixture
def source():
    plain = open_model('resnetrs', num_classes=3, img_size=32, model_kwargs=dict(layers=(1, 1, 1, 1), width=0.125))
    config = plain.data_config | dict(mean=(0, 0, 0), std=(1, 1, 1))
    return Source('colours', BrightestChannel(), plain.recipe, config, ['red', 'green', 'blue'])


def paint(path, channel):
    pixels = np.full((40, 50, 3), 20, np.uint8)
    pixels[..., channel] = 200
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def server(tmp_path):
    paint(tmp_path / 'green.png', 1)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{running.server_port}'
        running.shutdown()
        thread.join()


def test_limits_do_not_come_with_weights(source, tmp_path, server):
    photo = io.BytesIO()
    Image.new('RGB', (40, 50)).save(photo, 'JPEG', progressive=True)
    data = photo.getvalue()
    scan = data[data.rindex(b'\xff\xda'):-2]
    (tmp_path / 'scans.jpg').write_bytes(data[:-2] + 30 * scan + data[-2:])
    (tmp_path / 'cat.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ } loop\n')
    recipe = dataclasses.replace(source.recipe, max_image_scans=1000, max_image_pixels=1)
    lenient = dataclasses.replace(source, recipe=recipe)
    images = [f'{place}/{name}' for place in (tmp_path, server) for name in ('scans.jpg', 'cat.jpg', 'green.png')]
    assert [one.problem for one in predict(lenient, images)] == 2 * [
        '40 scans, more than the 32 allowed', 'not an image', '']


def test_images_get_their_classes_in_order_and_bad_ones_a_reason(source, tmp_path, server):
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.png').write_text('not an image')
    images = [paint(tmp_path / 'b.png', 2), str(tmp_path / 'empty.jpg'), paint(tmp_path / 'r.jpg', 0),
              str(tmp_path / 'text.png'), str(tmp_path / 'gone.png'), f'{server}/green.png', f'{server}/none.png']
    found = list(predict(source, images, top_k=2, batch_size=2))
    assert [one.image for one in found] == images
    assert [one.classes[0].name if one.classes else one.problem for one in found] == [
        'blue', 'empty file', 'red', 'not an image', 'no such file', 'green', 'the server says 404 File not found']
    best, second = found[0].classes
    assert (best.number, second.probability < best.probability) == (2, True)
    assert best.probability == pytest.approx(torch.tensor([20., 20, 200]).div(25.5).softmax(0)[2].item(), abs=1e-4)


def test_batches_and_workers_change_nothing(source, tmp_path):
    images = [paint(tmp_path / f'{number}.png', number % 3) for number in range(7)]
    alone = list(predict(source, images, batch_size=1))
    assert alone == list(predict(source, images, batch_size=4, workers=1))
    assert len(alone[0].classes) == 3  # all there are, where five were asked for


def test_a_run_predicts_as_it_evaluates(tiny_run):
    trained = read_run(tiny_run)
    source = open_model(str(tiny_run))
    assert source.class_names == ['cat', 'dog', 'eel']
    images = find_images([str(tiny_run.parent / 'pets/validation')])
    assert len(images) == 15
    found = list(predict(source, images))
    right = sum(one.classes[0].name in one.image for one in found)
    assert 100 * right / 15 == pytest.approx(trained.metrics['top1'], abs=0.01)


def test_folders_are_searched_and_doubles_are_dropped(tmp_path):
    write_images(tmp_path / 'a', dict(deep=2))
    (tmp_path / 'a/notes.txt').write_text('')
    found = find_images([str(tmp_path), str(tmp_path / 'a/deep/0.png'), 'http://x/y', 'gone.png'])
    assert [place.rpartition('/')[2] for place in found] == ['0.png', '1.png', 'y', 'gone.png']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no images in the folder .*empty'):
        find_images([str(tmp_path / 'empty')])


def test_images_to_calibrate_with_are_the_good_ones(source, tmp_path):
    (tmp_path / 'bad.png').write_bytes(b'')
    images, problems = load_images(source, [paint(tmp_path / 'g.png', 1), str(tmp_path / 'bad.png')])
    assert images.shape == (1, 3, 32, 32)
    assert images[0].mean((1, 2)).tolist() == pytest.approx([20 / 255, 200 / 255, 20 / 255], abs=1e-3)
    assert problems == [(str(tmp_path / 'bad.png'), 'empty file')]


def test_downloads_end_at_a_limit_and_name_what_went_wrong(server, monkeypatch):
    assert download(f'{server}/green.png').startswith(b'\x89PNG')
    monkeypatch.setattr(timm_rs.inference.predict, 'MAX_DOWNLOAD', 10)
    with pytest.raises(OSError, match='more than 0 MiB'):
        download(f'{server}/green.png')
    with pytest.raises(OSError, match='no connection: '):
        download('http://127.0.0.1:9/x.png')
    with pytest.raises(OSError, match='no download: '):
        download('http://[/x.png')


@pytest.mark.parametrize('name', ['grün é.png', 'two words.png', 'gr%C3%BCn%20%C3%A9.png', 'a+b&c.png'])
def test_urls_are_taken_as_people_write_them(server, tmp_path, name):
    for real in ('grün é.png', 'two words.png', 'a+b&c.png'):
        paint(tmp_path / real, 1)
    assert download(f'{server}/{name}').startswith(b'\x89PNG')


@pytest.mark.parametrize('name', ['plain.png', 'two words é.png'])
@pytest.mark.parametrize('write', [lambda path: path.as_uri(), lambda path: f'file://{path}',
                                   lambda path: f'FILE://localhost{path}'])
def test_a_file_url_is_the_file(tmp_path, name, write):
    path = paint(tmp_path / name, 0)
    assert find_images([write(tmp_path / name)]) == [path]
    assert find_images([write(tmp_path)]) == [path]


@pytest.mark.parametrize('place', ['', ' '])
def test_an_empty_argument_is_not_the_current_folder(place):
    for call in (lambda: find_images(['a.png', place]), lambda: open_model(place)):
        with pytest.raises(UserError, match='an empty argument names no'):
            call()


# ---- names of classes -------------------------------------------------------------------------------------------

def test_names_are_written_by_class_index(tmp_path):
    classes = {'zebra': 0, 'ant': 2, 'bee\n1': 2}
    write_class_names(tmp_path, classes)
    assert (tmp_path / FILE).read_text() == 'zebra\nclass 1\nant / bee 1\n'
    assert read_class_names(tmp_path, 3) == in_order(classes)
    with pytest.raises(UserError, match='has 3 names, but the model has 4 classes'):
        read_class_names(tmp_path, 4)


def test_data_without_names_leaves_none(tmp_path):
    write_class_names(tmp_path, {})
    assert read_class_names(tmp_path, 3) is None


def test_imagenet_is_known_and_other_heads_are_not():
    assert names_of_timm_model(timm.create_model('test_resnet'))[1] == 'goldfish, Carassius auratus'
    assert names_of_timm_model(timm.create_model('test_resnet', num_classes=10)) is None


def test_published_folders_know_the_names(tiny_run, tmp_path):
    write_folder(read_run(tiny_run), tmp_path / 'folder', 'me/tiny')
    assert '"cat"' in (tmp_path / 'folder' / CONFIG).read_text()
    assert open_model(str(tmp_path / 'folder')).class_names == ['cat', 'dog', 'eel']


def test_runs_take_no_arguments_of_a_model(tiny_run):
    with pytest.raises(UserError, match='says itself what model it is; leave out --num-classes'):
        open_model(str(tiny_run), num_classes=4)


def test_another_image_size_is_for_the_transform_too(tiny_run, tmp_path):
    source = open_model(str(tiny_run), img_size=48)
    images, _ = load_images(source, [paint(tmp_path / 'x.png', 0)])
    assert images.shape == (1, 3, 48, 48)
    assert open_model('test_vit', img_size=64).data_config['input_size'] == (3, 64, 64)


def test_a_model_that_has_its_image_size_in_its_weights_keeps_it(tmp_path):
    model, _ = build_model(recipe := Recipe(model='vit_tiny_patch16_224', img_size=32, num_classes=3), Device('cpu'),
                           create_task(recipe))
    assert model.patch_embed.img_size == (32, 32)
    torch.save(dict(state_dict=model.state_dict(), args=dataclasses.asdict(recipe)), tmp_path / 'vit.pth.tar')
    assert open_model(str(tmp_path / 'vit.pth.tar')).data_config['input_size'] == (3, 32, 32)
    with pytest.raises(UserError, match='has its image size, 32 x 32, in its weights; leave out --img-size'):
        open_model(str(tmp_path / 'vit.pth.tar'), img_size=64)


def test_gray_images_have_one_mean():
    _, config = build_model(recipe := Recipe(model='test_resnet', in_chans=1), Device('cpu'), create_task(recipe))
    assert len(config['mean']) == len(config['std']) == config['input_size'][0] == 1
