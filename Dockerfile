# The service as it runs in production: docker build --tag plusofon-verify .

FROM python:3.13-slim AS build

# Without pip: it installs into the venv from outside, and the service has no use for it.
RUN python -m venv --without-pip /opt/venv
WORKDIR /src

# The dependencies before the code: they change less often, and their layer is kept.
# Only wheels, because there is no compiler: a package without one is told by its name.
COPY requirements.lock ./
RUN pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: \
    --require-hashes --requirement requirements.lock

# The build backend (flit-core) came with the lock: nothing unpinned is fetched.
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-build-isolation .


FROM python:3.13-slim

# A number that does not change: volumes and "must not run as root" rules refer to it.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin verify

COPY --from=build /opt/venv /opt/venv

# HOST: in a container, 127.0.0.1 would be reached by nobody.
# PYTHONDONTWRITEBYTECODE: pip has compiled everything, and the file system may be read-only.
ENV PATH="/opt/venv/bin:$PATH" \
    HOST=0.0.0.0 \
    PORT=8000 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Without a proxy, even where the environment names one for the way to the provider. A certificate of its own is for a
# name, and this machine is asked by its address: it is not checked.
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s --retries=3 CMD ["python", "-c", "\
import os, ssl, urllib.request as r; \
s = 'https' if os.environ.get('TLS_CERT_FILE') else 'http'; \
r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=ssl._create_unverified_context())) \
.open(f'{s}://127.0.0.1:{os.environ[\"PORT\"]}/livez', timeout=2)"]

ENTRYPOINT ["plusofon-verify"]
CMD ["serve"]
