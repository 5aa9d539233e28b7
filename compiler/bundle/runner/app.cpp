// The beginning of an application that contains the model.
#include <cstdio>
#include <cstring>

#include "edgec_NAME.h"
#include "session.hpp"

int main() {
  const edgec_model& model = *edgec_model_NAME();
  edgec::Session session(model);
  for (int i = 0; i < model.input_count; ++i) {
    // Put your data here, in the dtype and shape of model.inputs[i]; this example runs on zeros.
    std::memset(session.input(i), 0, model.inputs[i].bytes);
  }
  session.run();
  // Read the results here: session.output(i) has the dtype and shape of model.outputs[i].
  for (int i = 0; i < model.output_count; ++i) {
    const edgec_tensor& tensor = model.outputs[i];
    std::printf("%s: %s of rank %d, %zu bytes\n", tensor.name, tensor.dtype, tensor.rank,
                tensor.bytes);
  }
  return 0;
}
