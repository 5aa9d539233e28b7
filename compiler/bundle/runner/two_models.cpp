// Two models in one program: that of this bundle and that of another, which CMakeLists.txt names.
#include <cstdio>
#include <cstring>

#include "edgec_NAME.h"
#include "session.hpp"
#include OTHER_HEADER  // "edgec_det.h" for a model of the name det

namespace {

// The first values of every output, for inputs whose bytes are zero.
void run(const char* name, edgec::Session& session, const edgec_model& model) {
  for (int i = 0; i < model.input_count; ++i)
    std::memset(session.input(i), 0, model.inputs[i].bytes);
  session.run();
  for (int i = 0; i < model.output_count; ++i) {
    const edgec_tensor& tensor = model.outputs[i];
    std::printf("%s %s:", name, tensor.name);
    if (!std::strcmp(tensor.dtype, "float32")) {
      const float* values = static_cast<const float*>(session.output(i));
      for (std::size_t j = 0; j < 4 && j < tensor.bytes / sizeof *values; ++j)
        std::printf(" %.6g", values[j]);
    }
    std::printf("\n");
  }
}

}  // namespace

int main() {
  const edgec_model& first = *edgec_model_NAME();
  const edgec_model& second = *OTHER_MODEL();  // edgec_model_det for a model of the name det
  edgec::Session first_session(first), second_session(second);
  run("first", first_session, first);
  run("second", second_session, second);
  return 0;
}
