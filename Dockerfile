# timber-tutorial:1: a program on a slim distribution.
#   docker build -t timber-tutorial:1 .
FROM rust:1.95-slim-trixie AS build
WORKDIR /timber

# The downloads have a layer of their own, so that an edit of the source does not repeat them.
COPY Cargo.toml Cargo.lock ./
RUN cargo fetch --locked

# glibc, Debian's C library, stays a file of its own. The program needs an image that contains it.
COPY . .
ARG BUILD_REVISION
RUN cargo install --path . --root /out --locked --offline
# The date of the file is fixed, so that everyone who builds this commit gets the same layer.
RUN touch -d @0 /out/bin/timber

FROM debian:trixie-slim
COPY --from=build /out/bin/timber /timber
LABEL org.opencontainers.image.title="timber" org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV PORT=8080 TIMBER_RELEASE=1
EXPOSE 8080
# A number, so that Kubernetes can tell that it is not root. It needs no entry in the list of users.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --retries=3 CMD ["/timber", "healthcheck"]
ENTRYPOINT ["/timber"]
