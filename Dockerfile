# The page on CPUs: docker build -t spgm . && docker run --rm -p 7860:7860 spgm
FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN python -m venv /opt/spgm
RUN /opt/spgm/bin/pip install --no-cache-dir torch==2.8.0 torchaudio==2.8.0 --index-url https://download.pytorch.org/whl/cpu
RUN /opt/spgm/bin/pip install --no-cache-dir '.[web]'
RUN /opt/spgm/bin/spgm separate demo/reading-en.flac --output /tmp/once
EXPOSE 7860
CMD ["/opt/spgm/bin/python", "space/app.py"]
