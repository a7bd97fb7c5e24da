"""Files as they should not be: bytes changed at random, values of JSON and lines of YAML replaced by hostile ones."""

import copy
import json

import numpy as np

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
VALUES = [None, True, -1, 0, 1.5, 1e308, 2**31, 2**63, 10**30, '', 'x', '../x', 'a\0b', '\ud800', [], [[]], {},
          {'': {}}]
YAML = ['0x_', '!!int ""', '!!bool x', '!!float ""', '!!timestamp x', '!!binary x', '!!set {a}', '!!omap [a: 1]',
        r'"\U00110000"', r'"\ud800"', r'"\0"', '1' + '0' * 400, '1' * 5000, '.inf', '-.nan', '1:60:60', '0o7',
        '2024-13-45', '2024-01-01', '[' * 3000, '{a: ' * 50, '&a [*a]', '*a', '&a', '<<: *a', '<<: [*a, *a]', '? ',
        '- ', '|', '>-', '%YAML 1.1', '---', '...', '"', "'", '#', '@', '`', '\t', '\0', '\ufeff', '\x85', '\u2028',
        'é', 'yes', '~', '=', 'timm_rs:', ':', '{}', '!!null x']


def mutate(rng: np.random.Generator, data: bytes, other: bytes = b'') -> bytes:
    """`data` with one to eight changes: bytes, numbers, pieces cut, doubled, or taken from `other`."""
    content = bytearray(data)
    for _ in range(1 << int(rng.integers(4))):
        at, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 1 << int(rng.integers(1, 10))))
        match rng.integers(7):
            case 0:
                content[at:at + 1] = bytes([rng.integers(256)])
            case 1:
                size = int(rng.choice([1, 2, 4]))
                number = int(rng.choice(NUMBERS)) % 256**size
                content[at:at + size] = number.to_bytes(size, str(rng.choice(['big', 'little'])))
            case 2:
                del content[at:at + length]
            case 3:
                content[at:at] = content[at:at + length] * int(rng.integers(1, 50))
            case 4:
                start = int(rng.integers(len(other) + 1))
                content[at:at + length] = other[start:start + length]
            case 5:
                content[at:at + length] = rng.bytes(length)
            case 6:
                if at < len(content):
                    content[at] ^= 1 << int(rng.integers(8))
    return bytes(content)


def mutate_json(rng: np.random.Generator, text: str) -> str:
    """The JSON with a few of its values replaced, renamed or doubled."""
    content = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        inner, key = content, None
        while isinstance(inner, (dict, list)) and inner and (key is None or rng.random() < 0.8):
            around, key = inner, list(inner)[rng.integers(len(inner))] if isinstance(inner, dict) else (
                int(rng.integers(len(inner))))
            inner = around[key]
        if key is None:
            break
        if isinstance(around, dict) and rng.random() < 0.2:
            around[str(rng.choice(['', '../x.tar', 'train-000000.tar']))] = around.pop(key)
        else:
            around[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return json.dumps(content)


def mutate_yaml(rng: np.random.Generator, text: str) -> str:
    """The recipe with a few lines' values, or lines, replaced."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 5))):
        at, piece = int(rng.integers(len(lines))), YAML[rng.integers(len(YAML))]
        key, colon, value = lines[at].partition(':')
        match rng.integers(6):
            case 0 | 1:
                lines[at] = f'{key}: {piece}'
            case 2:
                lines.insert(at, piece)
            case 3:
                lines[at] = f'{key}{colon} &a {value}'
            case 4:
                lines[at] = piece + lines[at]
            case 5:
                lines[at] = lines[int(rng.integers(len(lines)))]
    return '\n'.join(lines)
