// The beginning of an application that contains the model: see edgec.h for the interface.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "edgec.h"

namespace {

constexpr std::size_t kAlignment = 64;  // memory aligned to this is used in place

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer allocate(std::size_t bytes) {
  // aligned_alloc takes whole multiples of the alignment.
  return Buffer(std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment));
}

struct Close {
  void operator()(edgec_session* session) const { edgec_close(session); }
};

}  // namespace

int main() {
  // One session for each thread that runs the model; 0 means to compute on all cores.
  const std::unique_ptr<edgec_session, Close> session(edgec_open(0));
  if (!session) {
    std::fprintf(stderr, "no memory or no threads for the model\n");
    return 1;
  }

  std::vector<Buffer> buffers;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (int i = 0; i < edgec_input_count(); ++i) {
    buffers.push_back(allocate(edgec_input(i)->bytes));
    inputs.push_back(buffers.back().get());
    // Put your data here, in the dtype and shape of edgec_input(i); this example runs on zeros.
    unsigned char* data = static_cast<unsigned char*>(buffers.back().get());
    for (std::size_t byte = 0; byte < edgec_input(i)->bytes; ++byte) data[byte] = 0;
  }
  for (int i = 0; i < edgec_output_count(); ++i) {
    buffers.push_back(allocate(edgec_output(i)->bytes));
    outputs.push_back(buffers.back().get());
  }

  if (edgec_run(session.get(), inputs.data(), outputs.data()) != 0) {
    std::fprintf(stderr, "no memory to run the model\n");
    return 1;
  }

  // Read the results here; outputs[i] has the dtype and shape of edgec_output(i).
  for (int i = 0; i < edgec_output_count(); ++i) {
    const edgec_tensor* tensor = edgec_output(i);
    std::printf("%s: %s of rank %d, %zu bytes\n", tensor->name, tensor->dtype, tensor->rank,
                tensor->bytes);
  }
  return 0;
}
