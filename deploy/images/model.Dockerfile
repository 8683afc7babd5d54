# Head, learner and sampler: everything that runs the model.
#   docker build -f deploy/images/model.Dockerfile --build-arg ACCELERATOR=cuda12 -t rewardtune-model:0.1.0-cuda12 .
#   docker build -f deploy/images/model.Dockerfile --build-arg ACCELERATOR=tpu -t rewardtune-model:0.1.0-tpu .
# CUDA comes from pip's wheels; of the host it needs the driver and NVIDIA's container runtime.
FROM python:3.11.14-slim-bookworm

# cuda12 or tpu: JAX's build; deploy/images/constraints-ACCELERATOR.txt pins it.
ARG ACCELERATOR=cuda12
# Add uvim for panoptic segmentation and colorization, whose predictions torch decodes.
ARG EXTRAS=model,redis,remote,wordpiece
# Where torch's build without CUDA is: the one that uvim takes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY deploy/images/constraints-${ACCELERATOR}.txt /tmp/constraints-accelerator.txt
RUN case ",${EXTRAS}," in *,uvim,*) \
        pip install --no-deps --constraint constraints.txt --index-url "${TORCH_INDEX}" torch ;; \
    esac
# Dependencies alone: this layer stays while code changes.
RUN mkdir actors configs deploy learner protos replay rewards vision \
    && pip install --constraint constraints.txt --constraint /tmp/constraints-accelerator.txt \
        --editable ".[${EXTRAS}]" "jax[${ACCELERATOR}]" \
    && useradd --uid 1000 --create-home --shell /bin/bash rewardtune
COPY . .
# Again for the entry point, with the code in place.
RUN pip install --no-deps --editable .

USER 1000
ENV HOME=/home/rewardtune
# Asks the raylet of `ray start`; Kubernetes has its own probes.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "deploy.images.healthcheck", "raylet"]
CMD ["rewardtune", "--help"]
