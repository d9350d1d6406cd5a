# timber-tutorial:1: one dynamic binary on a slim Debian image.
#   docker build -t timber-tutorial:1 .
FROM rust:1.95-slim-trixie AS build
WORKDIR /timber

# An edit of the source reuses this layer: everything is compiled again, but nothing is downloaded again.
COPY Cargo.toml Cargo.lock build.rs ./
RUN cargo fetch --locked
COPY src src
COPY .cargo .cargo
# Optional: the commit that /version reports. The compiler reads it from the environment.
ARG BUILD_REVISION
# Rust programs use a C library. A dynamic binary loads it: here glibc, so the final image is Debian.
RUN cargo install --path . --root /out --locked --offline
# A fixed file date: the same commit and base image give the same layer again.
RUN touch -d @0 /out/bin/timber

FROM debian:trixie-slim
COPY --from=build /out/bin/timber /timber
LABEL org.opencontainers.image.title="timber" org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV PORT=8080 TIMBER_RELEASE=1
EXPOSE 8080
# A number, because Kubernetes (runAsNonRoot) rejects user names. It needs no entry in /etc/passwd.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --retries=3 CMD ["/timber", "healthcheck"]
ENTRYPOINT ["/timber"]
