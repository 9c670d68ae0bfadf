#include "checkpoint/safetensors.h"

#include <string>

#include "checkpoint/test_files.h"

namespace nibble {
namespace {

std::map<std::string, StoredTensor> parse(const std::string& bytes) {
  return parse_safetensors("x.safetensors", reinterpret_cast<const uint8_t*>(bytes.data()),
                           bytes.size());
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

// The error of a file whose header is `header` before 16 bytes of data; names the file always.
std::string header_error(const std::string& header, size_t data_bytes = 16) {
  const std::string message = error_of([&] { parse(safetensors_bytes(header, data_bytes)); });
  EXPECT_EQ(message.rfind("x.safetensors: ", 0), 0u) << message;
  return message.substr(std::min(message.size(), size_t(15)));
}

TEST(Safetensors, ReadsEveryDtypeScalarsAndEmptyTensors) {
  const std::string bytes =
      safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                        R"("f32":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                        R"("bf16":{"data_offsets":[8,12],"shape":[2],"dtype":"BF16"},)"
                        R"("f16":{"dtype":"F16","shape":[],"data_offsets":[12,14]},)"
                        R"("f8":{"dtype":"F8_E4M3","shape":[1,1,2],"data_offsets":[14,16]},)"
                        R"("u8":{"dtype":"U8","shape":[3],"data_offsets":[16,19]},)"
                        R"("i8":{"dtype":"I8","shape":[1],"data_offsets":[19,20]},)"
                        R"("none":{"dtype":"I32","shape":[0,7],"data_offsets":[20,20]},)"
                        R"("i32":{"dtype":"I32","shape":[1],"data_offsets":[20,24]},)"
                        R"("i64":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}   )",
                        32);
  const auto tensors = parse(bytes);
  ASSERT_EQ(tensors.size(), 9u);
  EXPECT_EQ(tensors.at("f32").dtype, DType::kF32);
  EXPECT_EQ(tensors.at("f32").shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(tensors.at("bf16").dtype, DType::kBF16);
  EXPECT_EQ(tensors.at("bf16").data[0], 8);
  EXPECT_EQ(tensors.at("bf16").size_bytes, 4);
  EXPECT_EQ(tensors.at("f16").shape, std::vector<int64_t>{});
  EXPECT_EQ(tensors.at("f16").num_elements(), 1);
  EXPECT_EQ(tensors.at("f8").dtype, DType::kF8E4M3);
  EXPECT_EQ(tensors.at("none").num_elements(), 0);
  EXPECT_EQ(tensors.at("none").size_bytes, 0);
  EXPECT_EQ(tensors.at("i64").data[0], 24);
  for (const auto& [name, t] : tensors) {
    EXPECT_EQ(t.num_elements() * int64_t(dtype_bytes(t.dtype)), t.size_bytes) << name;
  }
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  EXPECT_TRUE(parse(safetensors_bytes("{}", 0)).empty());
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string whole =
      safetensors_bytes(R"({"a":)" + tensor("F32", "[4]", "[0,16]") + "}", 16);
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_THROW(parse(whole.substr(0, n)), Error) << n << " bytes";
  }
  EXPECT_EQ(parse(whole).size(), 1u);
}

TEST(Safetensors, RefusesAbsurdHeaderSizes) {
  EXPECT_ERROR(parse("abc"), "too short");
  EXPECT_ERROR(parse(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8)), "at most 100 MB");
  EXPECT_ERROR(parse(std::string("\0\0\0\x06\0\0\0\0", 8)), "at most 100 MB");
  EXPECT_ERROR(parse(std::string("\x09\0\0\0\0\0\0\0{}", 10)), "cut short");
}

TEST(Safetensors, RefusesWhatIsNotTheHeadersJson) {
  EXPECT_NE(header_error(R"({"a":)").find("not JSON"), std::string::npos);
  EXPECT_NE(header_error("{} {}").find("not JSON"), std::string::npos);
  EXPECT_NE(header_error("{\"\xff\":1}").find("not JSON"), std::string::npos);
  EXPECT_EQ(header_error("[]"), "the header must be a JSON object, not an array");
  EXPECT_EQ(header_error("7"), "the header must be a JSON object, not 7");
  EXPECT_EQ(header_error(R"({"a":[1]})"), "tensor \"a\" must be an object, not an array");
  EXPECT_EQ(header_error(R"({"a":{"dtype":{}}})"),
            "tensor \"a\" has an object as its dtype; it must be a string");
  EXPECT_EQ(header_error(R"({"a":{"shape":"x"}})"),
            "tensor \"a\" has \"x\" as its shape; it must be a list of integers");
  EXPECT_EQ(header_error(R"({"a":{"layout":1}})"),
            "tensor \"a\" has the field \"layout\"; known are dtype, shape, data_offsets");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"U8","shape":[1]}})"),
            "tensor \"a\" has no data_offsets");
  EXPECT_EQ(header_error(R"({"a":{"shape":[1],"data_offsets":[0,1]}})"),
            "tensor \"a\" has no dtype");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})"),
            "tensor \"a\" has no shape");
}

TEST(Safetensors, RefusesDeepNestingWithoutRecursion) {
  const std::string open(1'000'000, '[');
  EXPECT_EQ(header_error(open), "the header must be a JSON object, not an array");
  EXPECT_EQ(header_error(R"({"a":{"shape":)" + open),
            "tensor \"a\" has an array in its shape; dimensions are integers from 0");
}

TEST(Safetensors, RefusesDuplicates) {
  const std::string a = tensor("U8", "[8]", "[0,8]"), b = tensor("U8", "[8]", "[8,16]");
  EXPECT_EQ(header_error(R"({"a":)" + a + R"(,"a":)" + b + "}"), "tensor \"a\" appears twice");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"U8","dtype":"U8"}})"), "tensor \"a\" has dtype twice");
  EXPECT_EQ(header_error(R"({"__metadata__":{},"__metadata__":{}})"),
            "\"__metadata__\" appears twice");
}

TEST(Safetensors, RefusesMetadataOtherThanStrings) {
  EXPECT_EQ(header_error(R"({"__metadata__":{"a":1}})"),
            "\"__metadata__\" must map strings to strings; \"a\" is 1");
  EXPECT_EQ(header_error(R"({"__metadata__":{"a":{}}})"),
            "\"__metadata__\" must map strings to strings; \"a\" is an object");
  EXPECT_EQ(header_error(R"({"__metadata__":3})"), "\"__metadata__\" must be an object, not 3");
}

TEST(Safetensors, RefusesUnknownDtypes) {
  for (const char* dtype : {"F64", "BOOL", "F8_E5M2", "f32", ""}) {
    EXPECT_EQ(header_error(R"({"a":)" + tensor(dtype, "[2]", "[0,16]") + "}"),
              "tensor \"a\" has the dtype \"" + std::string(dtype) +
                  "\"; those read are F32 BF16 F16 F8_E4M3 U8 I8 I32 I64");
  }
}

TEST(Safetensors, RefusesAbsurdShapes) {
  const auto shape_error = [](const std::string& shape) {
    return header_error(R"({"a":)" + tensor("F32", shape, "[0,16]") + "}");
  };
  const std::string not_integer = "in its shape; dimensions are integers from 0";
  for (const char* shape : {"[-4]", "[4.0]", "[\"4\"]", "[null]", "[true]", "[1e3]",
                            "[18446744073709551615]", "[99999999999999999999999]"}) {
    EXPECT_NE(shape_error(shape).find(not_integer), std::string::npos) << shape;
  }
  EXPECT_EQ(shape_error("[4294967296,4294967296]"), "tensor \"a\" has a shape too large to exist");
  EXPECT_EQ(shape_error("[9223372036854775807]"), "tensor \"a\" has a shape too large to exist");
  EXPECT_EQ(shape_error("[4294967296,4294967296,0]"),
            "tensor \"a\" has a shape too large to exist");
  EXPECT_EQ(shape_error("[1,1,1,1,1,1,1,1,4]"), "tensor \"a\" has over 8 dimensions");
  EXPECT_EQ(shape_error("[3]"),
            "tensor \"a\" needs 12 bytes by dtype and shape, but has data_offsets [0, 16]");
}

TEST(Safetensors, RefusesBadOffsets) {
  const auto offsets_error = [](const std::string& offsets) {
    return header_error(R"({"a":)" + tensor("U8", "[16]", offsets) + "}");
  };
  EXPECT_EQ(offsets_error("[16,0]"), "tensor \"a\" has reversed data_offsets [16, 0]");
  EXPECT_EQ(
      offsets_error("[1,17]"),
      "tensor \"a\" has data_offsets [1, 17] outside the file's 16 bytes of data (is the file "
      "cut short?)");
  EXPECT_EQ(offsets_error("[18446744073709551600,18446744073709551615]").find("tensor \"a\" has"),
            0u);
  EXPECT_EQ(offsets_error("[0]"), "tensor \"a\" must have two data_offsets");
  EXPECT_EQ(offsets_error("[0,16,16]"), "tensor \"a\" has more than two data_offsets");
  EXPECT_EQ(offsets_error("[-1,15]"),
            "tensor \"a\" has -1 in its data_offsets; they are integers from 0");
}

TEST(Safetensors, RefusesOverlapsAndGaps) {
  const auto two = [](const std::string& a, const std::string& b) {
    return header_error(R"({"a":)" + a + R"(,"b":)" + b + "}");
  };
  EXPECT_EQ(two(tensor("U8", "[9]", "[0,9]"), tensor("U8", "[8]", "[8,16]")),
            "tensor \"b\" overlaps the one before it");
  EXPECT_EQ(two(tensor("U8", "[16]", "[0,16]"), tensor("U8", "[16]", "[0,16]")),
            "tensor \"b\" overlaps the one before it");
  EXPECT_EQ(two(tensor("U8", "[7]", "[0,7]"), tensor("U8", "[8]", "[8,16]")),
            "no tensor has the bytes between 7 and tensor \"b\"");
  EXPECT_EQ(two(tensor("U8", "[7]", "[1,8]"), tensor("U8", "[8]", "[8,16]")),
            "no tensor has the bytes between 0 and tensor \"a\"");
  EXPECT_EQ(two(tensor("U8", "[8]", "[0,8]"), tensor("U8", "[6]", "[8,14]")),
            "2 bytes after the last tensor belong to none");
}

TEST(Safetensors, ShowsHostileNamesEscapedAndCutShort) {
  EXPECT_EQ(header_error(R"({"a\u001b[31m\n":1})"),
            "tensor \"a\\x1b[31m\\n\" must be an object, not 1");
  EXPECT_LT(header_error("{\"" + std::string(5000, 'a') + "\":1}").size(), 200u);
}

}  // namespace
}  // namespace nibble
