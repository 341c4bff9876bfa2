# The image for those who have a container engine; `make image` writes the same without one. Both are assembled by
# tests/testbed/image.py: our programs, the C library the operator is linked with, CA certificates, nothing else.
ARG RUST=rust:1.95-bookworm
FROM ${RUST} AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN tests/testbed/build-image.sh --rootfs /image

FROM scratch
LABEL org.opencontainers.image.title=dormouse org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /image /
# Any other user will do as well: nothing is written and nothing is owned.
USER 65532:65532
ENTRYPOINT ["/usr/bin/dormouse"]
