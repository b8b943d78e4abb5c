// A case of gram from stdin, gram [K, K] and row_mean [K] to stdout.
#include "emulated_gram.h"

int main() {
  Case input;
  const bool mean_origin = input.number() != 0, centre_rows = input.number() != 0;
  const bool has_origin = input.number() != 0, tf32 = input.number() != 0;
  using mmfl::emulation::Order;
  const Order order = input.number() != 0 ? Order::kBackward : Order::kForward;
  const Case::Rows rows = input.rows();
  const Case::Rows origin = has_origin ? input.rows() : Case::Rows{};
  const std::size_t count = static_cast<std::size_t>(rows.count);
  std::vector<double> gram(count * count, NAN), row_mean(count, NAN);

  mmfl::GramArgs args;
  args.blocks = rows.blocks.data();
  args.widths = rows.widths.data();
  args.origin = has_origin ? origin.blocks.data() : nullptr;
  args.grid_rows = 1;
  args.segments = static_cast<std::int64_t>(rows.widths.size());
  args.mean_origin = mean_origin;
  args.centre_rows = centre_rows;
  args.tf32 = tf32;
  args.gram = gram.data();
  args.row_mean = row_mean.data();
  emulated_gram::run(args, order);
  write_out(gram);
  write_out(row_mean);
  return 0;
}
