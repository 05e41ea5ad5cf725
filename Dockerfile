# The page of `spgm web` on CPUs: see docs/separate.md.
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY . .
RUN python -m venv /opt/spgm
RUN /opt/spgm/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.10.0 torchaudio==2.10.0
RUN /opt/spgm/bin/pip install --no-cache-dir '.[web]'
RUN /opt/spgm/bin/spgm info
EXPOSE 7860
CMD ["/opt/spgm/bin/python", "space/app.py"]
