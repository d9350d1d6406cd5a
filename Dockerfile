# timber-tutorial:1, the image that most people would ship: a glibc binary on a slim distribution.
#   docker build -t timber-tutorial:1 .
FROM rust:1.96-slim-trixie AS build
WORKDIR /timber

# With --build-arg AUDITABLE=1 the binary carries the list of its crates, for scanners of images. Compiling the tool that
# puts it in takes longer than all the rest: for releases.
ARG AUDITABLE=""
RUN [ -z "$AUDITABLE" ] || cargo install --locked cargo-auditable@0.7.7

# The dependencies, in a layer of their own: a change to the source downloads and compiles none of them again. They are
# built for an empty library, because that gives exactly those of the service; what came of it goes, or cargo could take
# it for newer than the source that follows. The list of crates would have those of the whole workspace: for a release it
# is the service's alone, in the versions that are locked.
COPY Cargo.toml Cargo.lock ./
RUN { [ -z "$AUDITABLE" ] || cargo fetch; } && \
    mkdir src && touch src/lib.rs && \
    cargo build --release --locked --lib && \
    cargo clean --release --locked --offline -p timber && \
    rm -r src

# Built again from the same commit it is the same layer, to the byte: without `touch` the file's time would differ.
COPY build.rs ./
COPY src src
ARG REVISION=""
RUN BUILD_REVISION="$REVISION" cargo ${AUDITABLE:+auditable} build --release --locked --offline \
    && cp target/release/timber /timber/timber \
    && touch -d @0 /timber/timber

FROM debian:trixie-slim
COPY --from=build /timber/timber /timber

ARG VERSION="0.1.0"
ARG REVISION=""
ARG CREATED=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="timber" \
      org.opencontainers.image.description="The tutorial's hello microservice, glibc on a slim distribution" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE"

ENV PORT=8080 TIMBER_RELEASE=1
EXPOSE 8080
# A number, not a name: Kubernetes can tell that it is not root. It needs no entry in a passwd file.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --retries=3 CMD ["/timber", "healthcheck"]
ENTRYPOINT ["/timber"]
