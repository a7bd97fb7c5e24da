"""Images whose colours are their tags, as tables or as texts beside them."""

import numpy as np
from PIL import Image

COLOURS = 'red', 'green', 'blue'


def write_tagged(root, form='tags', counts=(('train', 16), ('validation', 7))):
    """`root`/SPLIT.csv and the images in `root`/SPLIT; of form `marks` with 0 and 1, of form `texts` no table."""
    rng = np.random.default_rng(0)
    for split, count in counts:
        (root / split).mkdir(parents=True)
        rows = ['file,tags' if form == 'tags' else ','.join(('Path', *COLOURS))]
        for index in range(count):
            has = rng.random(3) < 0.5 if index else np.array([True, False, False])
            pixels = rng.integers(0, 120, (20, 20, 3)) + 100 * has
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f'{index}.png')
            tags = [name for name, there in zip(COLOURS, has, strict=True) if there]
            cells = [';'.join(tags)] if form == 'tags' else map(str, has.astype(int))
            rows.append(','.join((f'{index}.png', *cells)))
            if form == 'texts':
                (root / split / f'{index}.txt').write_text('\n'.join(tags))
        if form != 'texts':
            (root / f'{split}.csv').write_text('\n'.join(rows) + '\n')
    return root
