"""Decoding against Pillow: what every format, crop and bad file gives, and how far the fast resize is from its own."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, UnidentifiedImageError

from timm_rs.transforms import decode as decode_module
from timm_rs.transforms.decode import BadImage, Limits, middle, open_picture, open_with_pillow, resize

RNG = np.random.default_rng(0)


def photo(height, width):
    """Something smooth with a little noise, as a camera would see it."""
    y, x = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(x + y / 3), np.cos(y - x / 5), np.sin(x * y / 30)], axis=-1)
    return (128 + 90 * waves + RNG.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8)


def encode(pixels, kind='JPEG', **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data, mode='RGB'):
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


def jpegs():
    for height, width in ((75, 101), (64, 96), (1, 33), (40, 1)):
        size = f'{height}x{width}'
        for sampling in ('444', '422', '420', '440', '411'):
            yield pytest.param(simplejpeg.encode_jpeg(photo(height, width), 85, colorsubsampling=sampling),
                               id=f'{sampling}-{size}')
        yield pytest.param(encode(Image.fromarray(photo(height, width)).convert('L')), id=f'grayscale-{size}')
        yield pytest.param(encode(photo(height, width), progressive=True), id=f'progressive-{size}')
        yield pytest.param(encode(photo(height, width), restart_marker_blocks=2), id=f'restarts-{size}')
        yield pytest.param(encode(photo(height, width), keep_rgb=True), id=f'rgb-{size}')


@pytest.mark.parametrize('data', [*jpegs()])
def test_crop_of_a_jpeg_equals_pillows_to_the_last_bit(data):
    whole, picture = by_pillow(data), open_picture(data)
    height, width, _ = whole.shape
    assert (picture.height, picture.width) == (height, width)
    np.testing.assert_array_equal(picture.pixels(), whole)
    for bottom in range(1, height + 1):
        top, left = RNG.integers(bottom), RNG.integers(width)
        box = int(top), int(left), int(bottom - top), int(RNG.integers(left, width)) + 1 - int(left)
        cropped = picture.pixels(box)
        assert cropped.shape == (*box[2:], 3) and cropped.dtype == np.uint8
        np.testing.assert_array_equal(cropped, whole[box[0]:bottom, box[1]:box[1] + box[3]])


def test_without_simplejpeg_pillow_decodes_jpegs_to_the_same_pixels(monkeypatch):
    data = encode(photo(75, 101))
    pixels = open_picture(data).pixels((10, 20, 30, 40))
    monkeypatch.setattr(decode_module, 'simplejpeg', None)
    picture = open_picture(data)
    assert isinstance(picture, decode_module._PillowPicture)
    np.testing.assert_array_equal(picture.pixels((10, 20, 30, 40)), pixels)


def test_crop_at_the_top_does_not_decode_the_bottom(monkeypatch):
    heights, decode = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *a, **k: heights.append(len(p := decode(*a, **k))) or p)
    for options, expected in (({}, 42), ({'progressive': True}, 160)):
        open_picture(encode(photo(160, 80), **options)).pixels((10, 0, 30, 80))
        assert heights.pop() == expected


def others():
    image = Image.fromarray(photo(30, 41))
    palette, transparent = image.convert('P'), image.convert('P')
    transparent.info['transparency'] = bytes(range(256))
    with_alpha = image.copy()
    with_alpha.putalpha(Image.fromarray(photo(30, 41)[..., 0]))
    for kind in ('PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'):
        yield kind, encode(image, kind)
    yield 'PNG palette', encode(palette, 'PNG')
    yield 'PNG palette with transparency', encode(transparent, 'PNG')
    yield 'PNG with alpha', encode(with_alpha, 'PNG')
    yield 'PNG gray with alpha', encode(with_alpha.convert('LA'), 'PNG')
    yield 'PNG of one bit', encode(image.convert('1'), 'PNG')
    yield 'JPEG in CMYK', encode(image.convert('CMYK'))
    yield 'JPEG with junk after it', encode(image) + b'\0' * 7
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, which timm does not
    yield 'JPEG with orientation', encode(image, exif=exif)


@pytest.mark.filterwarnings('ignore:Palette images with Transparency')  # by_pillow's; ours must stay quiet
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA'])
@pytest.mark.parametrize('data', [pytest.param(data, id=name) for name, data in others()])
def test_every_format_and_mode_equals_pillows(data, mode, recwarn):
    expected = by_pillow(data, mode)
    recwarn.clear()
    picture = open_picture(data, mode)
    assert (picture.height, picture.width) == expected.shape[:2] == (30, 41)
    np.testing.assert_array_equal(picture.pixels(), expected)
    np.testing.assert_array_equal(picture.pixels((3, 4, 20, 30)), expected[3:23, 4:34])
    np.testing.assert_array_equal(open_picture(Image.open(io.BytesIO(data)), mode).pixels(), expected)
    assert picture.pixels().flags.writeable and not recwarn.list


@pytest.mark.filterwarnings('ignore:Palette images with Transparency')
@pytest.mark.parametrize('data', [pytest.param(data, id=name) for name, data in others()])
def test_what_is_converted_band_by_band_is_the_same(data, monkeypatch):
    whole = open_picture(data, 'RGB').pixels(), by_pillow(data, 'LA')
    monkeypatch.setattr(decode_module, '_BAND', 41 * 7)
    np.testing.assert_array_equal(open_picture(data, 'RGB').pixels(), whole[0])
    np.testing.assert_array_equal(open_picture(data, 'LA').pixels((3, 4, 20, 30)), whole[1][3:23, 4:34])


def test_16_bit_images_keep_their_high_byte():
    values = RNG.integers(0, 2**16, (20, 30)).astype(np.uint16)
    high = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    pgm = b'P5 30 20 65535\n' + values.astype('>u2').tobytes()
    for data in (encode(Image.fromarray(values), 'PNG'), encode(Image.fromarray(values), 'TIFF'), pgm):
        np.testing.assert_array_equal(open_picture(data).pixels(), high)
        np.testing.assert_array_equal(open_picture(data, 'L').pixels(), high[..., :1])


def of_every_mode():
    for mode in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV'):
        yield mode, Image.fromarray(photo(20, 30)).convert(mode) if mode not in ('PA', 'RGBa') else (
            Image.fromarray(photo(20, 30)).convert('RGBA').convert(mode))
    for dtype in (np.int32, np.float32):
        for low, high in ((0, 200), (-300, 70000)):
            values = RNG.integers(low, high, (20, 30)).astype(dtype)
            yield f'{dtype.__name__} from {low} to {high}', Image.fromarray(values)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('image', [pytest.param(image, id=name) for name, image in of_every_mode()])
def test_every_mode_is_converted_as_pillow_does(image, mode):
    expected = np.asarray(image.convert(mode))
    np.testing.assert_array_equal(open_picture(image, mode).pixels().squeeze(), expected)
    if image.mode in ('I', 'F', '1', 'LA', 'CMYK'):
        np.testing.assert_array_equal(open_picture(encode(image, 'TIFF'), mode).pixels().squeeze(), expected)


@pytest.mark.filterwarnings('ignore:.*:UserWarning')  # Pillow's, of what it mends
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_blocks': 3}], ids=str)
def test_damage_is_mended_or_refused_as_by_pillow(options):
    intact, refused = encode(photo(120, 160), quality=80, **options), 0
    for _ in range(200):
        data = bytearray(intact)
        for at in RNG.integers(2, len(data) - 2, 3):
            data[at] = RNG.integers(256)
        try:
            whole = by_pillow(bytes(data))
        except Exception:  # of many kinds
            refused += 1
            with pytest.raises(BadImage):
                open_picture(bytes(data)).pixels()
        else:
            picture = open_picture(bytes(data))
            np.testing.assert_array_equal(picture.pixels(), whole)
            np.testing.assert_array_equal(picture.pixels((5, 6, 50, 70)), whole[5:55, 6:76])
    assert 0 < refused < 100


# ---- bad files --------------------------------------------------------------------------------------------------

def png(height, width, data=b'\0' * 1000):
    header = struct.pack('>2I5B', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in ((b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')))


def jpeg_of(height, width):
    data = encode(photo(16, 16))
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>2H', height, width) + data[at + 4:]


def bad_files():
    jpeg = encode(photo(100, 120), quality=90)
    for kept in (30, 300, 700, len(jpeg) // 2, len(jpeg) - 2, len(jpeg) - 1):
        yield f'JPEG cut after {kept}', jpeg[:kept], 'truncated'
    progressive = encode(photo(100, 120), progressive=True)
    yield 'half a progressive JPEG', progressive[:len(progressive) // 2], 'truncated'
    yield 'half a PNG', (data := encode(photo(40, 40), 'PNG'))[:len(data) // 2], 'truncated'
    yield 'PNG of too few rows', png(100, 100), '.+'
    yield 'empty', b'', 'empty file'
    yield 'text', b'<html>404 not found</html>' * 9, 'not an image'
    yield 'first bytes of a JPEG', b'\xff\xd8', 'not an image'
    yield 'JPEG markers only', b'\xff\xd8\xff\xe0\x00\x04ab\xff\xd9', '.+'
    yield 'JPEG of no rows', jpeg_of(0, 16), '.+'
    yield 'PNG bomb', png(30000, 30000), '900000000 pixels, more than the 89478485 allowed'
    yield 'smaller PNG bomb', png(10000, 10000), '10000 x 10000 pixels, more than the 89478485 allowed'
    yield 'JPEG bomb', jpeg_of(60000, 50000), '50000 x 60000 pixels, more than the 89478485 allowed'


@pytest.mark.parametrize(('data', 'reason'), [pytest.param(data, why, id=name) for name, data, why in bad_files()])
def test_bad_files_say_why_and_nothing_else(data, reason, capfd, recwarn):
    with pytest.raises(BadImage, match=f'^{reason}$'):
        open_picture(data).pixels((0, 0, 10, 10))  # a crop that a file without its end still holds
    assert capfd.readouterr() == ('', '') and not recwarn.list


def test_limit_on_pixels_is_pillows(monkeypatch):
    for data in (encode(photo(20, 20)), encode(photo(20, 20), 'PNG')):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 399)
        with pytest.raises(BadImage, match='20 x 20 pixels, more than the 399 allowed'):
            open_picture(data)
        with pytest.raises(BadImage, match='20 x 20 pixels, more than the 399 allowed'):
            open_picture(Image.new('L', (20, 20)))
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
        assert open_picture(data).pixels().shape == (20, 20, 3)


# ---- resizing ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_crop_and_resize_are_within_50_db_of_pillows(interpolation, mode):
    ratios = []
    for side in (96, 160, 224, 320):
        data = encode(photo(187, 250), quality=90)
        height, width = RNG.integers(60, (187, 250))
        box = (int(RNG.integers(188 - height)), int(RNG.integers(251 - width)), int(height), int(width))
        with Image.open(io.BytesIO(data)) as image:
            theirs = image.convert(mode).crop((box[1], box[0], box[1] + box[3], box[0] + box[2])).resize(
                (side, side), Image.Resampling[interpolation.upper()])
        ours = resize(open_picture(data, mode).pixels(box), side, side, interpolation)
        assert ours.shape == (side, side, len(mode)) and ours.dtype == np.uint8 and ours.flags.carray
        assert np.abs(ours.squeeze().astype(int) - theirs).max() <= 2
        ratios.append(psnr(ours.squeeze(), np.asarray(theirs)))
    assert np.median(ratios) >= 50


@pytest.mark.parametrize('interpolation', ['nearest', 'box', 'hamming', 'lanczos'])
def test_other_interpolations_are_pillows(interpolation):
    pixels = photo(50, 70)
    theirs = Image.fromarray(pixels).resize((40, 30), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(resize(pixels, 30, 40, interpolation), theirs)
    assert resize(pixels[..., :1], 30, 40, interpolation).shape == (30, 40, 1)


def test_resize_takes_what_it_cannot_write_to_and_refuses_unknown_names():
    pixels = photo(30, 30)
    pixels.flags.writeable = False
    assert resize(pixels, 20, 25).shape == (20, 25, 3)
    with pytest.raises(ValueError, match='unknown interpolation cubical'):
        resize(pixels, 20, 20, 'cubical')


@pytest.mark.parametrize(('size', 'box'), [
    ((40, 50), (0, 0, 40, 50)), ((1, 100), (0, 0, 1, 100)), ((1, 40000), (0, 19950, 1, 100)),
    ((40001, 2), (19900, 0, 201, 2)), ((40000, 1), (19950, 0, 100, 1))])
def test_of_a_very_long_image_the_middle_is_enough(size, box):
    assert middle(*size) == box


# ---- files of strangers -----------------------------------------------------------------------------------------

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ } loop\n'


def with_scans(count, size=(24, 24), **options):
    """A progressive JPEG, its last scan repeated until there are `count`."""
    data = encode(photo(*size), progressive=True, **options)
    last = data.rindex(b'\xff\xda')
    return data[:-2] + data[last:-2] * (count - data.count(b'\xff\xda')) + data[-2:]


def run_length_bmp(side):
    """A BMP of `side` x `side` whose every line is one pixel and an end: a line takes 4 bytes, and Python to decode."""
    content = b'\1\0\0\0' * side + b'\0\1'
    header = struct.pack('<IiiHHIIiiII', 40, side, side, 1, 8, 1, 0, 2835, 2835, 256, 256)
    return b'BM' + struct.pack('<IHHI', 1078 + len(content), 0, 0, 1078) + header + bytes(1024) + content


@pytest.mark.parametrize('data', [EPS, *(encode(photo(16, 16), kind) for kind in ('ICO', 'TGA', 'JPEG2000', 'PCX'))])
def test_other_formats_are_opened_by_nobody_and_start_no_program(data, monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', lambda *arguments, **options: pytest.fail('a program was started'))
    for mode in ('RGB', 'L'):
        with pytest.raises(BadImage, match='^not an image$'):
            open_picture(data, mode).pixels()
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data)).load()  # as timm, torchvision and Hugging Face do


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_jpeg_may_come_in_so_many_scans(mode):
    allowed, more = with_scans(32), with_scans(33)
    np.testing.assert_array_equal(open_picture(allowed, mode).pixels(), by_pillow(allowed, mode))
    np.testing.assert_array_equal(open_picture(more, mode, Limits(scans=33)).pixels(), by_pillow(more, mode))
    with pytest.raises(BadImage, match='^33 scans, more than the 32 allowed$'):
        open_picture(more, mode)
    with pytest.raises(BadImage, match='^11 scans, more than the 10 allowed$'):
        open_picture(with_scans(11), mode, Limits(scans=10))


@pytest.mark.parametrize('progressive', [False, True])
def test_what_looks_like_scans_elsewhere_is_none(progressive):
    data = encode(photo(24, 24), progressive=progressive, comment=b'\xff\xda' * 40, restart_marker_blocks=1)
    for content in (data, data + b'\xff\xda' * 40):  # a phone's film behind its photo
        np.testing.assert_array_equal(open_picture(content).pixels(), by_pillow(content))


def test_jpegs_in_a_tiff_have_scans_too():
    data = encode(photo(64, 64), 'TIFF', compression='jpeg', tiffinfo={278: 16})
    np.testing.assert_array_equal(open_picture(data).pixels(), by_pillow(data))
    with pytest.raises(BadImage, match='scans, more than the 128 allowed'):
        open_picture(data + b'\xff\xda' * 129)


def test_what_python_decodes_must_be_small():
    assert open_picture(run_length_bmp(64)).pixels().shape == (64, 64, 3)
    with pytest.raises(BadImage, match='9000 x 9000 pixels, more than the 2796202 allowed'):
        open_picture(run_length_bmp(9000))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_pixels_have_a_limit_of_ones_own(kind):
    data = encode(photo(20, 30), kind)
    assert open_with_pillow(data, Limits(pixels=600)).size == (30, 20)
    for opened in (open_picture, lambda data, mode, limits: open_with_pillow(data, limits)):
        with pytest.raises(BadImage, match='30 x 20 pixels, more than the 599 allowed'):
            opened(data, 'RGB', Limits(pixels=599))


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_the_largest_image_takes_less_than_a_gigabyte():
    program = ('import io, re, sys, timm_rs.transforms.decode as decode\n'  # getrusage counts the parent's, too
               'peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10\n'
               'from PIL import Image\n'
               'file = io.BytesIO()\n'
               'Image.new("I", (64, 64)).save(file, "TIFF", compression="tiff_adobe_deflate")\n'
               'decode.open_picture(file.getvalue()).pixels()\n'
               'data, before = sys.stdin.buffer.read(), peak()\n'
               'decode.open_picture(data).pixels()\n'
               'print(peak() - before)')
    data = encode(Image.new('I', (9400, 9400)), 'TIFF', compression='tiff_adobe_deflate', tiffinfo={278: 9400})
    done = subprocess.run([sys.executable, '-c', program], input=data, capture_output=True, check=True)
    assert 300 < int(done.stdout) < 900


# ---- scaled decoding --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('progressive', [False, True])
def test_scaled_crop_is_the_least_of_the_steps_that_suffices(progressive):
    picture = open_picture(encode(photo(375, 501), quality=90, progressive=progressive))
    box = (21, 34, 300, 320)
    for at_least, expected in (((301, 10), (300, 320)), ((151, 10), (300, 320)), ((150, 160), (150, 160)),
                               ((10, 81), (150, 160)), ((75, 80), (75, 80)), ((37, 40), (37, 40)), ((1, 1), (37, 40))):
        height, width, _ = picture.pixels(box, at_least).shape
        assert abs(height - expected[0]) <= (expected[0] < 75) and width == expected[1]
        assert height >= min(at_least[0], 300) and width >= at_least[1]
    np.testing.assert_array_equal(picture.pixels(box, (151, 161)), picture.pixels(box))


def test_scaled_crop_keeps_the_least_size_and_shows_the_same_place():
    for height, width in ((375, 500), (333, 201), (17, 23)):
        pixels = photo(height, width)
        picture = open_picture(encode(pixels, quality=95))
        for _ in range(30):
            rows, columns = (int(RNG.integers(1, side + 1)) for side in (height, width))
            box = int(RNG.integers(height - rows + 1)), int(RNG.integers(width - columns + 1)), rows, columns
            at_least = int(RNG.integers(1, rows + 1)), int(RNG.integers(1, columns + 1))
            scaled = picture.pixels(box, at_least)
            assert at_least[0] <= scaled.shape[0] and at_least[1] <= scaled.shape[1]
            if rows >= 100 and columns >= 100 and min(at_least) >= 40:
                exact = resize(picture.pixels(box), *at_least)
                assert psnr(resize(scaled, *at_least), exact) > 24
