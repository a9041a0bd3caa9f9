# A Homebrew formula for Pippin. `make formula` fills in @URL@ and @SHA256@ and writes it to build/homebrew/pippin.rb.
class Pippin < Formula
  desc "LLM inference server on MLX with an OpenAI-compatible HTTP interface"
  version "@VERSION@"
  url "@URL@"
  sha256 "@SHA256@"

  depends_on "python@3.12"

  on_linux do
    depends_on "gcc" # MLX on a CPU compiles its fused kernels with g++ when they are first used
  end

  # Wheels, where Homebrew's own formulae build each dependency from source: MLX's Metal kernels would need Xcode.
  def install
    system Formula["python@3.12"].opt_bin/"python3.12", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "--constraint", "requirements.txt", "."
    bin.install_symlink libexec/"bin/pippin"
  end

  # `brew services start pippin` serves the model that comes with Pippin; `pippin install-service` takes any other.
  service do
    run [opt_bin/"pippin", "serve"]
    keep_alive crashed: true
    log_path var/"log/pippin.log"
    error_log_path var/"log/pippin.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/pippin --version")
    assert_match "8081", shell_output("#{bin}/pippin config --port 8081")
    system bin/"pippin", "doctor", "--", "--port", free_port.to_s
  end
end
