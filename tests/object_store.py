"""An object store in memory under the name of Google's: no network, no gcsfs."""

from __future__ import annotations

import io

from fsspec import AbstractFileSystem


class ObjectStore(AbstractFileSystem):
    """What `etils.epath` asks for `gs://` paths.

    Folders are what the names of objects have in common, and making one does nothing. An object
    appears when it is closed.
    """

    protocol = ("gs", "gcs")
    objects: dict[str, bytes] = {}  # noqa: RUF012

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        found = {}
        for name, content in self.objects.items():
            if name == path:
                found[name] = {"name": name, "type": "file", "size": len(content)}
            elif name.startswith(f"{path}/"):
                child, slash, _ = name.removeprefix(f"{path}/").partition("/")
                # As gcsfs does: the empty object `folder/` is listed as `folder`.
                name = f"{path}/{child}" if child else path
                kind = "directory" if slash else "file"
                found[name] = {"name": name, "type": kind, "size": 0 if slash else len(content)}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _open(self, path, mode="rb", **_):
        if mode == "wb":
            return _Upload(self.objects, path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])

    def _rm(self, path):
        self.objects.pop(path, None)


class _Upload(io.BytesIO):
    def __init__(self, objects, path):
        super().__init__()
        self.objects, self.path = objects, path

    def close(self):
        if not self.closed:
            self.objects[self.path] = self.getvalue()
        super().close()
