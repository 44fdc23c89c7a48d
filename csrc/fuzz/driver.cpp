// Mutates a good file for a number of seconds: for compilers without libFuzzer. `fuzz_section_file SECONDS [SEED]`
//
// Half of the inputs get their checksums put right again, so that damage reaches the readers behind them.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "obverse/random.hpp"
#include "obverse/section_file.hpp"
#include "obverse/trie.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace obverse;
using Bytes = std::vector<uint8_t>;

/// A trie over tokens below 64, in a file of its own.
Bytes good_file(KeyedRandom* random, const std::string& path) {
  std::vector<int32_t> flat;
  std::vector<int64_t> offsets{0};
  for (size_t i = 0, count = 1 + random->below(40); i < count; ++i) {
    for (size_t d = 0, length = 1 + random->below(4); d < length; ++d) {
      flat.push_back(static_cast<int32_t>(random->below(64)));
    }
    offsets.push_back(static_cast<int64_t>(flat.size()));
  }
  const auto trie = Trie::build(Ragged<int32_t>(flat, offsets), 1);
  SectionFile::write(path, "fuzz", trie->sections("x"));
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Writes the same sections again, so that every checksum is right for the bytes that are there now.
void mend(Bytes* bytes, const std::string& path) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes->data()), static_cast<std::streamsize>(bytes->size()));
  try {
    const auto file = SectionFile::open(path);
    std::vector<Section> sections;
    for (const std::string& name : file->names()) sections.push_back({name, file->section(name)});
    const std::string mended = path + ".mended";
    SectionFile::write(mended, file->fingerprint(), sections);
    std::ifstream in(mended, std::ios::binary);
    bytes->assign(std::istreambuf_iterator<char>(in), {});
    std::remove(mended.c_str());
  } catch (const ValueError&) {
  }
}

void damage(Bytes* bytes, KeyedRandom* random, bool spare_header) {
  constexpr size_t kHead = 128 + 9 * 64;
  const size_t from = spare_header && bytes->size() > kHead ? kHead : 0;
  for (size_t i = 0, count = 1 + random->below(6); i < count && bytes->size() > from + 8; ++i) {
    const size_t at = from + random->below(bytes->size() - from - 8);
    switch (random->below(5)) {
      case 0:
        (*bytes)[at] ^= static_cast<uint8_t>(1U << random->below(8));
        break;
      case 1:
        (*bytes)[at] = static_cast<uint8_t>(random->below(256));
        break;
      case 2: {  // a hostile number
        const uint64_t number =
            random->below(2) == 0 ? ~uint64_t{0} >> random->below(64) : random->below(1 << 20);
        std::memcpy(bytes->data() + at, &number, random->below(2) == 0 ? 4 : 8);
        break;
      }
      case 3:
        std::memset(bytes->data() + at, static_cast<int>(random->below(2) * 255),
                    std::min<size_t>(bytes->size() - at, random->below(200)));
        break;
      default:
        if (!spare_header && random->below(8) == 0) bytes->resize(random->below(bytes->size()));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const auto seed = static_cast<uint64_t>(argc > 2 ? std::atoll(argv[2]) : 1);
  const std::string path =
      (std::filesystem::temp_directory_path() / ("obverse-seed-" + std::to_string(seed))).string();
  const auto begun = std::chrono::steady_clock::now();
  uint64_t runs = 0;
  for (std::chrono::duration<double> spent{}; spent.count() < seconds; ++runs) {
    KeyedRandom random(seed, runs);
    Bytes bytes = good_file(&random, path);
    const bool whole_header = random.below(2) == 0;
    damage(&bytes, &random, whole_header);
    if (whole_header) mend(&bytes, path);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    spent = std::chrono::steady_clock::now() - begun;
  }
  std::remove(path.c_str());
  std::printf("fuzz_section_file: %llu inputs in %.0f s from seed %llu, no crash\n",
              static_cast<unsigned long long>(runs), seconds, static_cast<unsigned long long>(seed));
}
