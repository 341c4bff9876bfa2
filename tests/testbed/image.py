#!/usr/bin/env python3
"""Assembles Dormouse's container image without a container engine.

  image.py rootfs FOLDER --operator FILE --supervisor FILE [--supervisor FILE] [--certificates FILE]
      the image's file tree, as the Dockerfile copies it FROM scratch
  image.py archive TAR --name NAME --root FOLDER --entrypoint PATH [--version V] [--revision R]
      an OCI image archive of one layer, for `ctr images import`, `docker load`, `skopeo copy oci-archive:`

Both are reproducible: the same input gives the same bytes. An operator that is linked dynamically, as an ordinary
build on glibc is, brings its loader and libraries with it: what `ldd` lists and nothing else. Resolving names needs
no more than that, since glibc 2.34 has the `files` and `dns` services inside libc itself.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

USER = 65532
MACHINES = {62: ("x86_64", "amd64"), 183: ("aarch64", "arm64")}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
FILES = {
    "etc/passwd": f"dormouse:x:{USER}:{USER}::/:/nonexistent\n",
    "etc/group": f"dormouse:x:{USER}:\n",
    # Without this file glibc asks DNS first, and /etc/hosts only when DNS is unavailable.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)

    rootfs = verbs.add_parser("rootfs")
    rootfs.add_argument("folder", type=Path)
    rootfs.add_argument("--operator", type=Path, required=True)
    rootfs.add_argument("--supervisor", type=Path, action="append", required=True)
    rootfs.add_argument("--certificates", type=Path, default=Path(CERTIFICATES))
    rootfs.set_defaults(run=lambda a: write_rootfs(a.folder, a.operator, a.supervisor, a.certificates))

    archive = verbs.add_parser("archive")
    archive.add_argument("tar", type=Path)
    archive.add_argument("--name", required=True, help="such as registry.example.com/dormouse:1.0.0")
    archive.add_argument("--root", type=Path, required=True)
    archive.add_argument("--entrypoint", required=True)
    archive.add_argument("--version", default="")
    archive.add_argument("--revision", default="")
    archive.set_defaults(run=write_archive)

    arguments = parser.parse_args()
    arguments.run(arguments)


def write_rootfs(folder: Path, operator: Path, supervisors: list[Path], certificates: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    install(operator, folder / "usr/bin/dormouse", 0o755)
    for library in libraries(operator):
        install(library, folder / str(library).lstrip("/"), 0o755)
    for supervisor in supervisors:
        if libraries(supervisor):
            sys.exit(f"image: {supervisor} is not static: it could not run on the hosts it is put on")
        install(supervisor, folder / "usr/libexec/dormouse" / f"dormouse-supervisor-{machine(supervisor)[0]}", 0o755)
    if not certificates.is_file():
        sys.exit(f"image: no CA certificates at {certificates}; install the package ca-certificates or give --certificates")
    install(certificates, folder / CERTIFICATES.lstrip("/"), 0o644)
    for path, text in FILES.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o644)


def install(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def machine(binary: Path) -> tuple[str, str]:
    """The machine a binary is for, in the words of `uname -m` and of OCI."""
    with open(binary, "rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF":
        sys.exit(f"image: {binary} is not a Linux program")
    number = struct.unpack("<H", header[18:20])[0]
    if number not in MACHINES:
        sys.exit(f"image: {binary} is for an unknown machine (ELF {number}); known: x86-64, arm64")
    return MACHINES[number]


def libraries(binary: Path) -> list[Path]:
    """The loader and the shared libraries of a binary; none when it is static."""
    if machine(binary)[0] != os.uname().machine:
        return []
    answer = subprocess.run(["ldd", binary], capture_output=True, text=True)
    if answer.returncode != 0 or "statically linked" in answer.stdout:
        return []
    found = []
    for line in answer.stdout.splitlines():
        words = line.split()
        if "not found" in line:
            sys.exit(f"image: {binary} needs {words[0]}, which is not installed here")
        # `libc.so.6 => /lib/.../libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`, or the kernel's vdso.
        path = words[2] if "=>" in words else words[0]
        if path.startswith("/"):
            found.append(Path(path))
    return sorted(found)


def write_archive(arguments: argparse.Namespace) -> None:
    layer = layer_of(arguments.root)
    packed = gzip.compress(layer, compresslevel=1, mtime=0)
    architecture = machine(arguments.root / arguments.entrypoint.lstrip("/"))[1]
    labels = {"org.opencontainers.image.title": "dormouse", "org.opencontainers.image.licenses": "Apache-2.0"}
    for key in ("version", "revision"):
        if value := getattr(arguments, key):
            labels[f"org.opencontainers.image.{key}"] = value
    config = encode({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [arguments.entrypoint], "User": f"{USER}:{USER}", "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    })
    manifest = encode({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        "annotations": labels,
    })
    name = arguments.name
    entry = describe("application/vnd.oci.image.manifest.v1+json", manifest) | {
        "platform": {"architecture": architecture, "os": "linux"},
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    # `manifest.json` is what engines read that are older than OCI archives.
    older = [{"Config": blob(config), "RepoTags": [name], "Layers": [blob(packed)]}]

    arguments.tar.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.tar.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
        for data in (config, manifest, packed):
            add(tar, blob(data), data)
        add(tar, "index.json", encode(index))
        add(tar, "manifest.json", encode(older))
    partial.rename(arguments.tar)
    print(f"{arguments.tar} {name} {digest(manifest)} {architecture} {len(packed) / 1e6:.1f} MB")


def layer_of(root: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if path.is_dir() else path.stat().st_mode & 0o777
            if path.is_file():
                with open(path, "rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return "blobs/" + digest(data).replace(":", "/")


def describe(media_type: str, data: bytes) -> dict:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def encode(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    main()
