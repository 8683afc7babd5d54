# Reward workers, in Ray and outside it: no JAX, no CUDA.
#   docker build -f deploy/images/reward.Dockerfile -t rewardtune-reward:0.1.0 .
FROM python:3.11.14-slim-bookworm

# Add uvim for panoptic segmentation and colorization, whose predictions torch decodes.
ARG EXTRAS=redis,remote,wordpiece
# Where torch's build without CUDA is: the one that uvim takes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN case ",${EXTRAS}," in *,uvim,*) \
        pip install --no-deps --constraint constraints.txt --index-url "${TORCH_INDEX}" torch ;; \
    esac
# Dependencies alone: this layer stays while code changes.
RUN mkdir actors configs deploy learner protos replay rewards vision \
    && pip install --constraint constraints.txt --editable ".[${EXTRAS}]" \
    && useradd --uid 1000 --create-home --shell /bin/bash rewardtune
COPY . .
# Again for the entry point, with the code in place.
RUN pip install --no-deps --editable .

USER 1000
ENV HOME=/home/rewardtune
EXPOSE 50061
# A reward server. In a Ray cluster run `ray start`, and check with `raylet` in place of `server`.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "deploy.images.healthcheck", "server"]
CMD ["rewardtune", "serve", "reward", "--help"]
