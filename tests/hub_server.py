"""A Hugging Face Hub on 127.0.0.1: the part of its protocol that publishing and fetching models need.

Repositories live in memory, commits are snapshots. Large files are served from a second origin (`localhost`), as the
real Hub serves them from a CDN, so that a token sent there would be seen. `faults` makes it misbehave.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = 'hf_write_7c1f', 'hf_read_52d8'  # the tokens that are known here
TOKENS = {WRITE: 'write', READ: 'read'}


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    hidden: bool = False  # somebody else's: nobody here can see it
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pull_requests: list[str] = field(default_factory=list)  # titles
    large: set[str] = field(default_factory=set)  # paths kept by LFS

    def commit(self, files: dict[str, bytes], branch: str = 'main') -> str:
        sha = hashlib.sha1(f'{len(self.commits)}'.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches['main']]


@dataclass
class Fault:
    """The next `times` requests whose 'METHOD path' has `pattern` in it go wrong."""
    pattern: str
    status: int = 0  # answer that, or
    cut_after: int = -1  # break the connection after so many bytes of the body, or
    lose_answer: bool = False  # do the work and break the connection, or
    wrong_bytes: bool = False  # send as many bytes of other content, or
    ignore_range: bool = False  # send all of it, whatever was asked for
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class HubServer:
    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.faults: list[Fault] = []
        self.closed = False
        self.has_lfs = True
        self.requests: list[tuple[str, dict[str, str]]] = []  # 'METHOD path' and headers, in the order they came
        handler = type('Handler', (_Handler,), {'hub': self})
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        self.cdn = f'http://localhost:{self.http.server_port}'
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closed = True  # connections that are open know it by this
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def add(self, name: str, files: dict[str, bytes] | None = None, **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(**options)
        repository.commit({'.gitattributes': b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'} | (files or {}))
        repository.large = {path for path in files or {} if path.endswith('.safetensors')}
        return repository

    def fail(self, pattern: str, status: int = 0, **options: Any) -> None:
        self.faults.append(Fault(pattern, status, **options))

    def asked(self, pattern: str) -> list[dict[str, str]]:
        """The headers of the requests whose 'METHOD path' has `pattern` in it."""
        return [headers for request, headers in self.requests if re.search(pattern, request)]


class _Refused(Exception):
    def __init__(self, status: int, code: str = '', message: str = '', **body: Any):
        super().__init__(status)
        self.status, self.code, self.message, self.body = status, code, message, body


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that went away
            super().handle_one_request()

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get('Content-Length') or 0)
        self.body = self.rfile.read(length)
        if self.hub.closed:
            return self.hang_up()
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        request = f'{self.command} {unquote(self.path)}'
        self.hub.requests.append((request, {key.lower(): value for key, value in self.headers.items()}))
        self.fault = next(
            (fault for fault in self.hub.faults if fault.times and re.search(fault.pattern, request)), None)
        if self.fault:
            self.fault.times -= 1
            if self.fault.status:
                return self.answer(self.fault.status, b'<html>out of order</html>', self.fault.headers)
        split = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(split.query).items()}
        try:
            for method, pattern, function in _ROUTES:
                if (method == self.command or (method, self.command) == ('GET', 'HEAD')) and (
                        match := re.fullmatch(pattern, split.path)):
                    return function(self, *(unquote(group) for group in match.groups()))
            raise _Refused(404, message='no such page')
        except _Refused as refused:
            headers = {'X-Error-Code': refused.code, 'X-Error-Message': refused.message}
            self.answer(refused.status, json.dumps({'error': refused.message} | refused.body).encode(),
                        {key: value for key, value in headers.items() if value})

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, status: int, body: bytes = b'', headers: dict[str, str] | None = None) -> None:
        if self.fault and self.fault.lose_answer:
            return self.hang_up()
        self.send_response(status)
        for key, value in {'Content-Length': str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == 'HEAD':
            return None
        if self.fault and self.fault.wrong_bytes:
            body = bytes(len(body))
        if self.fault and self.fault.cut_after >= 0:
            self.wfile.write(body[:self.fault.cut_after])
            return self.hang_up()
        self.wfile.write(body)
        return None

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    # ---- who may do what ----------------------------------------------------------------------------------------

    def role(self) -> str | None:
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in TOKENS:
            raise _Refused(401, message='Invalid credentials in Authorization header')
        return TOKENS.get(token)

    def writer(self) -> None:
        if self.role() != 'write':
            raise _Refused(403, message='You do not have the required permissions')

    def repository(self, name: str) -> Repository:
        repository, role = self.hub.repositories.get(name), self.role()
        if repository is None or repository.hidden or repository.private and role is None:
            raise _Refused(404 if role else 401, 'RepoNotFound', 'Repository not found')
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise _Refused(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return sha

    # ---- reading ------------------------------------------------------------------------------------------------

    def info(self, name: str, revision: str = 'main') -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision)
        self.json(dict(_id='1', id=name, modelId=name, sha=sha, private=repository.private, gated=False, tags=[],
                       disabled=False, siblings=[{'rfilename': path} for path in repository.commits[sha]]))

    def tree(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        entries = []
        for path, content in repository.commits[self.commit_of(repository, revision)].items():
            entry: dict[str, Any] = dict(type='file', path=path, size=len(content), oid=_blob_id(content))
            if path in repository.large:
                pointer = f'oid sha256:{_sha256(content)}'.encode()
                entry |= dict(oid=_blob_id(pointer), lfs=dict(oid=_sha256(content), size=len(content), pointerSize=134))
            entries.append(entry)
        folders = {path.rpartition('/')[0] for path in repository.commits[self.commit_of(repository, revision)]} - {''}
        self.json(entries + [dict(type='directory', path=path, size=0, oid='0' * 40) for path in folders])

    def download(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        if repository.gated:
            raise _Refused(403, 'GatedRepo', f'Access to model {name} is restricted')
        sha = self.commit_of(repository, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            raise _Refused(404, 'EntryNotFound', 'Entry not found')
        headers = {'X-Repo-Commit': sha, 'ETag': f'"{_blob_id(content)}"'}
        if path in repository.large:
            oid = _sha256(content)
            self.hub.uploaded[oid] = content
            headers |= {'X-Linked-Etag': f'"{oid}"', 'X-Linked-Size': str(len(content)),
                        'Location': f'{self.hub.cdn}/cdn/{oid}'}
            return self.answer(302, b'', headers)
        return self.bytes(content, headers)

    def object(self, oid: str) -> None:
        self.bytes(self.hub.uploaded[oid], {'ETag': f'"{oid}"'})

    def bytes(self, content: bytes, headers: dict[str, str]) -> None:
        span = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if not span or self.fault and self.fault.ignore_range:
            return self.answer(200, content, headers)
        start = int(span[1])
        if start >= len(content):
            return self.answer(416, b'', {'Content-Range': f'bytes */{len(content)}'})
        headers = headers | {'Content-Range': f'bytes {start}-{len(content) - 1}/{len(content)}'}
        return self.answer(206, content[start:], headers)

    def discussions(self, name: str) -> None:
        titles = self.repository(name).pull_requests
        self.json(dict(count=len(titles), start=0, discussions=[dict(
            title=title, num=number, author={'name': 'me'}, createdAt='2026-01-01T00:00:00.000Z', status='open',
            repo={'name': name, 'type': 'model'}, isPullRequest=True) for number, title in enumerate(titles, start=1)]))

    # ---- writing ------------------------------------------------------------------------------------------------

    def create(self) -> None:
        content = json.loads(self.body)
        name = f'{content["organization"]}/{content["name"]}'
        if self.role() is None:
            raise _Refused(401, message='Invalid username or password.')
        self.writer()
        if name in self.hub.repositories:
            raise _Refused(409, message='You already created this model repo', url=f'{self.hub.url}/{name}')
        self.hub.add(name, private=content.get('visibility') == 'private')
        self.json(dict(url=f'{self.hub.url}/{name}', name=name))

    def validate(self) -> None:
        self.json(dict(errors=[], warnings=[]))

    def preupload(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        self.writer()
        there = repository.commits[self.commit_of(repository, revision)]
        large = '.safetensors' if self.hub.has_lfs else '-'
        self.json(dict(files=[dict(
            path=file['path'], uploadMode='lfs' if file['path'].endswith(large) else 'regular',
            shouldIgnore=False, oid=_blob_id(there[file['path']]) if file['path'] in there else None)
            for file in json.loads(self.body)['files']]))

    def batch(self, name: str) -> None:
        self.repository(name)
        self.writer()
        answers = []
        for wanted in json.loads(self.body)['objects']:
            answer = dict(oid=wanted['oid'], size=wanted['size'])
            if wanted['oid'] not in self.hub.uploaded:
                answer['actions'] = dict(upload=dict(href=f'{self.hub.cdn}/upload/{wanted["oid"]}'),
                                         verify=dict(href=f'{self.hub.url}/verify/{name}'))
            answers.append(answer)
        self.json(dict(transfer='basic', objects=answers))

    def upload(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            raise _Refused(400, message='the content is not what was announced')
        self.hub.uploaded[oid] = self.body
        self.answer(200)

    def verify(self, name: str) -> None:
        self.repository(name)
        self.writer()
        content = json.loads(self.body)
        if len(self.hub.uploaded.get(content['oid'], b'')) != content['size']:
            raise _Refused(404, message='the object has not arrived')
        self.json({})

    def commit(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        self.writer()
        parent = self.commit_of(repository, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]['value']
        if header.get('parentCommit', parent) != parent:
            raise _Refused(412, message='A commit has happened since. Please refresh and try again.')
        files = dict(repository.commits[parent])
        for line in lines[1:]:
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.hub.uploaded[value['oid']]
                repository.large.add(value['path'])
            elif line['key'] == 'deletedFile':
                del files[value['path']]
            else:
                raise _Refused(400, message=f'{line["key"]} is not known here')
        branch, request_url = revision, None
        if self.query.get('create_pr') == '1':
            repository.pull_requests.append(header['summary'])
            branch = f'refs/pr/{len(repository.pull_requests)}'
            request_url = f'{self.hub.url}/{name}/discussions/{len(repository.pull_requests)}'
        sha = repository.commit(files, branch)
        self.json(dict(success=True, commitOid=sha, commitUrl=f'{self.hub.url}/{name}/commit/{sha}',
                       pullRequestUrl=request_url))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f'blob {len(content)}\0'.encode() + content).hexdigest()


_NAME = '([^/]+/[^/]+)'
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ('POST', '/api/repos/create', _Handler.create),
    ('POST', '/api/validate-yaml', _Handler.validate),
    ('POST', f'/api/models/{_NAME}/preupload/([^/]+)', _Handler.preupload),
    ('POST', f'/api/models/{_NAME}/commit/([^/]+)', _Handler.commit),
    ('GET', f'/api/models/{_NAME}/tree/([^/]+)', _Handler.tree),
    ('GET', f'/api/models/{_NAME}/discussions', _Handler.discussions),
    ('GET', f'/api/models/{_NAME}/revision/([^/]+)', _Handler.info),
    ('GET', f'/api/models/{_NAME}', _Handler.info),
    ('POST', f'/{_NAME}.git/info/lfs/objects/batch', _Handler.batch),
    ('POST', f'/verify/{_NAME}', _Handler.verify),
    ('PUT', '/upload/([0-9a-f]{64})', _Handler.upload),
    ('GET', '/cdn/([0-9a-f]{64})', _Handler.object),
    ('GET', f'/{_NAME}/resolve/([^/]+)/(.+)', _Handler.download),
]
